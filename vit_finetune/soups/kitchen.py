"""What blends of models share: opening and comparing ingredients, scoring weights, writing the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.common.layout import MANIFEST
from vit_finetune.data import ImageSet
from vit_finetune.data.manifest import trained_on
from vit_finetune.evaluation import Blend, calibrate, note_opening, tune_thresholds
from vit_finetune.export import export_model_folder
from vit_finetune.models import Backbone
from vit_finetune.pictures import labelled_pictures, run_splits
from vit_finetune.predict import SOUP_FILE, FinishedRun, Predictor, evaluate
from vit_finetune.weights.averaging import average_state_dicts, check_alike

if TYPE_CHECKING:
    from typing import TypeAlias

    from vit_finetune.pictures import Data

    Ingredient: TypeAlias = str | Path | FinishedRun


@dataclass(frozen=True)
class SoupResult:
    """A finished blend; once written, its folder is taken wherever a run's is.

    Attributes:
        run_dir: the folder it was written to, `run_dir / "model"` opens without us; None where it was not written.
        model: the network, on the CPU, in eval mode.
        metrics: its figures on the pictures that decided, as fractions.
        chosen: the places of the ingredients that went in; or WiSE-FT's alpha.
        rows: figures of everything that was scored; see `greedy_blend` and `wise_ft_blend`.
    """

    run_dir: Path | None
    model: Backbone
    metrics: dict[str, float]
    chosen: tuple[int, ...] | float
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Kitchen:
    """Models that fit each other, the pictures that decide, and the place of the result.

    Attributes:
        predictor: of the first model; its network is what every blend is scored in.
        states: the weights of each ingredient.
        names: what each is called.
        pictures: those that decide.
        split: of the data that they are of, or None for a folder of class folders.
        dst: the folder of the result, or None.
        overwrite: replace an older result there.
    """

    predictor: Predictor
    states: Sequence[Mapping[str, Tensor]]
    names: Sequence[str]
    pictures: ImageSet
    split: str | None
    dst: Path | None
    overwrite: bool

    @classmethod
    def open(
        cls,
        models: Sequence[Ingredient],
        data: Data | None,
        split: str | None,
        dst: str | Path | None,
        *,
        overwrite: bool,
    ) -> Kitchen:
        """Open every model and refuse what cannot be averaged or compared."""
        if not models:
            raise RequestError("there is nothing to average; give at least one model")
        place = None if dst is None else Path(dst)
        if place is not None and place.exists() and not (overwrite and (place / SOUP_FILE).is_file()):
            raise RequestError(f"{place} exists already; choose another place, or overwrite a soup with overwrite=True")
        names = [str(model if isinstance(model, (str, Path)) else model.run_dir) for model in models]
        first, *others = predictors = [Predictor(model) for model in models]
        for name, other in zip(names[1:], others, strict=True):
            _check_fit(first, other, names[0], name)
        found = run_splits(names[0]) if data is None else data
        is_plain = isinstance(found, (str, Path)) and not (Path(found) / "train").is_dir()
        split = split or (None if is_plain else "val")  # never test unasked: these pictures decide
        pictures = labelled_pictures(found, split, first.class_names)
        _refuse_seen(names, pictures)
        if data is None and split == "test":
            note_opening(Path(names[0]), command="soup", metrics={})
        states = [predictor.model.state_dict() for predictor in predictors]
        if len(states) > 1:  # the first network is the one that scores: its weights are kept apart from it
            check_alike(states)
        states[0] = average_state_dicts(states[:1])
        return cls(first, states, names, pictures, split, place, overwrite)

    def score(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the figures of weights on the pictures that decide."""
        self.predictor.model.load_state_dict(state)
        return evaluate(self.predictor.model, self.pictures, predictor=self.predictor).metrics

    def tuned(self) -> tuple[list[float] | None, float | None]:
        """Return thresholds or a temperature for the network as it is, whichever it takes, by what decides."""
        found = evaluate(self.predictor.model, self.pictures, predictor=self.predictor)
        if self.predictor.thresholds is not None:
            return tune_thresholds(found.labels, found.probabilities), None
        return None, calibrate(found, found, measured_on=self.split or "val").temperature

    def serve(self, kind: str, blend: Blend) -> SoupResult:
        """Put the chosen weights into the network and write it with how it was chosen."""
        self.predictor.model.load_state_dict(blend.state)
        model = self.predictor.model.to("cpu").eval()
        if self.dst is not None:
            summary = {
                "kind": kind,
                "split": self.split,
                **blend.metrics,
                "num_samples": len(self.pictures),
                "ingredients": list(self.names),
                "chosen": blend.chosen,
                "rows": blend.rows,
            }
            with atomic_folder(self.dst, replace=self.overwrite) as folder:
                spec, classes = self.predictor.preprocess, self.predictor.class_names
                thresholds, temperature = self.tuned()
                export = partial(export_model_folder, preprocess=spec, class_names=classes)
                export(model, folder / "model", thresholds=thresholds, temperature=temperature)
                write_json(folder / SOUP_FILE, summary)
        return SoupResult(self.dst, model, blend.metrics, blend.chosen, blend.rows)


def _check_fit(first: Predictor, other: Predictor, first_name: str, other_name: str) -> None:
    """Refuse a model of another network, class map or preprocessing than the first."""
    problem = None
    ours, theirs = first.model.config.to_mapping(), other.model.config.to_mapping()
    keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key) and not _only_trains(key))
    if keys:
        problem = f"the networks differ in {', '.join(keys)}"
    elif first.class_names != other.class_names:
        problem = f"the classes are {', '.join(first.class_names)} and {', '.join(other.class_names)}"
    elif first.preprocess.to_mapping() != other.preprocess.to_mapping():
        ours, theirs = first.preprocess.to_mapping(), other.preprocess.to_mapping()
        problem = "; ".join(f"{key} is {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key])
    if problem is not None:
        raise RequestError(f"{first_name} and {other_name} cannot be averaged: {problem}; average runs of one recipe")


def _only_trains(key: str) -> bool:
    """Say whether a field of a network's configuration matters in training alone: soups vary those on purpose."""
    return key.endswith(("drop_rate", "drop_path_rate")) or key == "weight_init"


def metric_of(model: Ingredient) -> str:
    """Return what a run chose its best checkpoint by; accuracy for what is no run."""
    plan = Path(model if isinstance(model, (str, Path)) else model.run_dir) / "plan.json"
    return str(json.loads(plan.read_text(encoding="utf-8")).get("metric", "accuracy")) if plan.is_file() else "accuracy"


def _refuse_seen(names: Sequence[str], pictures: ImageSet) -> None:
    """Refuse to choose by pictures that a run trained on: with another seed it held out other ones."""
    manifests = {name: path for name in names if (path := Path(name) / MANIFEST).is_file()}
    if not manifests:
        return
    scored = {
        (pictures.store.key(index), hashlib.sha256(pictures.store.read(index)).hexdigest())
        for index in range(len(pictures))
    }
    for name, manifest in manifests.items():
        seen = scored & trained_on(manifest)
        if seen:
            raise RequestError(
                f"{name} trained on {len(seen)} of the {len(pictures)} pictures that would decide, such as "
                f"{min(seen)[0]}; give pictures that no ingredient saw, or runs with the same held-out split "
                "(a val folder, or one run.seed)"
            )
