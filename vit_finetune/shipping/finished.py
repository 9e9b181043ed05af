"""The model that is shipped, with what its run knows of it; and pictures to prove an export on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import ImageSet, find_images
from vit_finetune.models import Backbone
from vit_finetune.pictures import run_splits
from vit_finetune.predict import model_source
from vit_finetune.weights import from_pretrained


@dataclass(frozen=True)
class Finished:
    """A finished model.

    Attributes:
        source: what it was loaded from: a folder, a file, or a name.
        run_dir: of the run that made it, if it is a run's.
        model: on the CPU, in eval mode.
        preprocess: its evaluation transform.
        class_names: K names.
        thresholds: of a model for several classes a picture; else None.
        temperature: that its logits are divided by for calibrated probabilities; None where none was fitted.
    """

    source: str
    run_dir: Path | None
    model: nn.Module
    preprocess: PreprocessSpec
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    temperature: float | None

    @property
    def is_plain(self) -> bool:
        """Whether it is a network that timm's layout can hold, and no readout of ours."""
        return isinstance(self.model, Backbone) and not (Path(self.source) / "readout.json").is_file()

    @property
    def backbone(self) -> Backbone:
        """The network, where it is plain.

        Raises:
            RequestError: it is a readout that only our own folder holds.
        """
        if not self.is_plain or not isinstance(self.model, Backbone):
            raise RequestError(
                "this is a readout of frozen features that no other library has a layout for; export it to onnx or "
                "torch_export, which hold any network"
            )
        return self.model

    def recorded(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run; empty where there is none."""
        path = None if self.run_dir is None else self.run_dir / name
        if path is None or not path.is_file():
            return {}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def open_finished(run_or_model: str | Path) -> Finished:
    """Load a finished model with what is known of it.

    Args:
        run_or_model: a run's folder, a model folder, its safetensors file, or anything that `from_pretrained` takes.

    Raises:
        RequestError: there is no such model, or it does not say its classes.
    """
    source = model_source(run_or_model)
    model, report = from_pretrained(source)
    if report.class_names is None or len(report.class_names) != model.num_classes:
        raise RequestError(f"{source} does not name its classes; export a model that was fine-tuned, or a run")
    is_run = (Path(run_or_model) / "config.yaml").is_file()
    return Finished(
        source=source,
        run_dir=Path(run_or_model) if is_run else None,
        model=model.eval(),
        preprocess=report.preprocess,
        class_names=report.class_names,
        thresholds=report.thresholds,
        temperature=report.temperature,
    )


@dataclass(frozen=True)
class ProofPictures:
    """Pictures that an export is compared on.

    Attributes:
        images: them, with their classes where known.
        chosen: places in `images`.
        told: what they are, for people.
    """

    images: ImageSet | None
    chosen: tuple[int, ...]
    told: str

    def __len__(self) -> int:
        """Return their number."""
        return len(self.chosen)

    def decoded(self) -> Iterator[tuple[Image.Image, int]]:
        """Yield each picture, upright and in RGB, with its class (-1 where it has none, or several).

        Raises:
            RequestError: one cannot be read, or has other channels than colours.
        """
        for index in self.chosen:
            assert self.images is not None
            picture = self.images.load(index)
            if not isinstance(picture, Image.Image):
                raise RequestError(f"{self.images.name(index)} has {len(picture)} channels; the proof takes colours")
            yield picture, -1 if self.images.is_multilabel else int(self.images.labels[index])


def proof_pictures(finished: Finished, images: Iterable[str | Path] | None, *, most: int) -> ProofPictures:
    """Return pictures to prove an export on: those given, else of the run's test split, else of its val split.

    Args:
        finished: the model.
        images: files or folders; None takes the run's.
        most: how many at most, spread evenly.

    Raises:
        RequestError: there are no pictures in what was given.
    """
    if images is not None:
        given = ImageSet.from_paths(find_images(images))
        if not len(given):
            raise RequestError("there are no pictures to prove the export on")
        return _spread(given, "given pictures", most)
    if finished.run_dir is None:
        return ProofPictures(None, (), "none: the model is no run's, and none were given (--images)")
    try:
        named = dict(run_splits(finished.run_dir).named())
    except RequestError as error:
        return ProofPictures(None, (), f"none: the run's pictures are not there any more ({error})")
    for split in ("test", "val"):
        if split in named:
            return _spread(named[split], f"pictures of the run's {split} split", most)
    return ProofPictures(None, (), "none: the run held no pictures out, and none were given (--images)")


def _spread(images: ImageSet, told: str, most: int) -> ProofPictures:
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    return ProofPictures(images, tuple(int(index) for index in chosen), told)
