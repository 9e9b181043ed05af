"""Frozen work is done once: what comes before the first layer that trains is computed and kept, stage by stage.

View v of a training picture is the picture as epoch v varies it, so as many views as epochs give the run that there is
without this, but for rounding (pictures go through the frozen half in other batches).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vit_finetune.assembly.feeding import Feeder
from vit_finetune.assembly.keeping import num_workers_of
from vit_finetune.assembly.network import train_transform_of
from vit_finetune.assembly.waiting import BytesBatch
from vit_finetune.common.entries import cache_key, default_cache_dir
from vit_finetune.common.layout import MANIFEST
from vit_finetune.config import Config, DataConfig
from vit_finetune.data import ImageSet
from vit_finetune.data.bad_images import BadImage
from vit_finetune.data.batch import Batch
from vit_finetune.data.loader import eval_batches
from vit_finetune.data.manifest import split_digests
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.data.workers import Request, Worker
from vit_finetune.evaluation import EvalResult
from vit_finetune.models import Backbone, SecondHalf
from vit_finetune.training import RunConsole, Stage, TrainPlan, on_main
from vit_finetune.training.feature_cache import FeatureCache, size_of
from vit_finetune.training.features import PrefixSource, cached_features

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCH = 64  # pictures per forward pass: enough to keep a processor busy without a gradient
_COPY = 1 << 32  # what the number of a visit has more for each earlier one in its epoch (data/order.py)
# What varies pictures in training, in the data section, and what makes none vary.
_STILL = {
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "hflip": 0.0,
    "vflip": 0.0,
    "color_jitter": 0.0,
    "auto_augment": None,
    "random_erasing": 0.0,
}
_OTHERS = ("resizer", "working_size", "draft")  # change pixels, but all views alike


class KeptWorker(Worker):
    """Answers requests for pictures by what the first half of a network gave of them.

    Args:
        views: of each view that is kept the rows [num_pictures, ...].
        num_views: after so many views they repeat.
        args: as of `Worker`.
        options: as of `Worker`.
    """

    def __init__(self, *args: Any, views: Mapping[int, np.ndarray], num_views: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.views, self.num_views = views, num_views

    def _pictures(self, request: Request) -> tuple[list[Tensor | None], list[BadImage]]:
        """Return the rows of a request; a picture that comes twice in an epoch is varied twice."""
        rows: list[Tensor | None] = []
        for number, index in zip(request.epochs.tolist(), request.indices.tolist(), strict=True):
            view = (number % _COPY + number // _COPY) % self.num_views
            rows.append(torch.from_numpy(np.array(self.views[view][index])))
        return rows, []

    def _stacked(self, pictures: list[Tensor]) -> Tensor:
        """Return rows [b, ...]; of none, too, in the shape of any other."""
        example = next(iter(self.views.values()))
        return torch.stack(pictures) if pictures else torch.zeros(0, *example.shape[1:])


def is_still(data: DataConfig) -> bool:
    """Say whether training sees every picture the same each time."""
    return all(getattr(data, key) == value for key, value in _STILL.items())


def views_in(stage: Stage, plan: TrainPlan, num_views: int, *, balanced: bool) -> list[int]:
    """Return the views that a stage sees, ascending.

    Args:
        stage: of the run.
        plan: of the run.
        num_views: after so many they repeat.
        balanced: pictures of small classes come several times an epoch, so any view may be needed.
    """
    if balanced:
        return list(range(num_views))
    first = stage.first_step * plan.global_batch_size // plan.num_train
    last = (plan.end_of(stage) * plan.global_batch_size - 1) // plan.num_train
    return sorted({epoch % num_views for epoch in range(first, min(last + 1, first + num_views))})


@dataclass
class FrozenWork:
    """Batches and figures of a run whose frozen work is done once where the recipe says so.

    Attributes:
        config: of the run.
        model: the bare network, in the stage that trains when batches are asked for.
        boundaries: of each stage of the plan, of `count_tuning`.
        feeder: of the run.
        console: told what is kept.
    """

    config: Config
    model: Backbone
    boundaries: list[int]
    feeder: Feeder
    console: RunConsole

    def __post_init__(self) -> None:
        """Begin without a stage."""
        self._val: Callable[[nn.Module], EvalResult] | None = None

    @property
    def _plan(self) -> TrainPlan:
        return self.feeder.plan

    @property
    def _accelerator(self) -> Accelerator:
        return self.feeder.accelerator

    def _num_views(self, stage: Stage) -> int:
        """Return how many views of a picture a stage has; 0 where nothing is kept."""
        wanted, boundary = self.config.tuning.cache_prefix, self.boundaries[self._plan.stages.index(stage)]
        if wanted == "off" or not boundary:
            return 0
        if isinstance(wanted, int):
            return wanted
        steps = self._plan.end_of(stage) - stage.first_step
        pays = self._plan.epoch_at(steps) > 1 and is_still(self.config.data)
        changes = self.config.train.mixes or bool(self._plan.sizes)
        return int(pays and not changes and self.config.data.on_bad_image == "error")

    def train(self, start_step: int) -> Iterator[list[Batch | BytesBatch]]:
        """Yield the micro-batches of every step from `start_step` to the last.

        Args:
            start_step: steps done.

        Raises:
            RequestError: there is no room for what is kept.
            WorkError: the disk is full, or the processes do not share the cache.
        """
        if self.config.tuning.cache_prefix == "off":
            yield from self.feeder.train(start_step)
            return
        for stage in self._plan.stages:
            first, end = max(start_step, stage.first_step), self._plan.end_of(stage)
            if first < end:
                num_views, self._val = self._num_views(stage), None
                kept = {"make_worker": self._keep(stage, num_views)} if num_views else {}
                yield from self.feeder.train(first, until=end, **kept)

    def val_scorer(self) -> Callable[[nn.Module], EvalResult] | None:
        """Return what scores a network on the val split, or None where there is none."""
        plain = self.feeder.val_scorer()
        if plain is None:
            return None

        def scored(model: nn.Module) -> EvalResult:
            return (self._val or plain)(model)  # as the stage is then

        return scored

    def _keep(self, stage: Stage, num_views: int) -> Callable[..., Worker]:
        """Compute what a stage needs, or find it; return what makes its batches."""
        boundary = self.boundaries[self._plan.stages.index(stage)]
        source = PrefixSource(self.model, boundary)
        splits, balanced = self.feeder.splits, self.config.train.imbalance == "balanced_sampler"
        wanted = views_in(stage, self._plan, num_views, balanced=balanced)
        cache = self._cache(source, len(wanted))
        digests = on_main(self._accelerator, lambda: split_digests(Path(self.config.run.dir) / MANIFEST))
        whole = {"batch": _BATCH, "eval": self.feeder.preprocess.to_mapping(), **source.facts(self._accelerator)}
        varied = {key: self.config.data.model_dump(mode="json")[key] for key in (*_STILL, *_OTHERS)}
        facts: dict[int | str, dict[str, Any]] = {
            view: {**whole, "pictures": digests["train"], **varied, "seed": self._plan.seed, "view": view}
            for view in wanted
        }
        if splits.val is not None:
            facts["val"] = {**whole, "pictures": digests["val"]}
        keys, tables, was_training = [cache_key(fact) for fact in facts.values()], {}, self.model.training
        self.model.eval()
        for view, fact in facts.items():
            pictures = splits.val if view == "val" and splits.val is not None else self.feeder.sources["train"]
            found, hit = cached_features(
                source,
                self._batches(pictures, None if isinstance(view, str) else view),
                count=len(pictures),
                facts=fact,
                cache=cache,
                accelerator=self._accelerator,
                keep=keys,
            )
            tables[view] = found["prefix"]
            what = "val" if view == "val" else f"train view {view}"
            done = f"{'kept' if hit else 'computed'} up to block {min(boundary, len(self.model.blocks))}"
            self.console.say(f"frozen   {what}: {done}, {tables[view].nbytes / 1e6:,.0f} MB in {cache.root}")
        self.model.train(was_training)
        if "val" in tables:
            self._val = self._scorer(boundary, tables["val"])
        views = {view: table for view, table in tables.items() if isinstance(view, int)}
        return lambda *args, **options: KeptWorker(*args, views=views, num_views=num_views, **options)

    def _cache(self, source: PrefixSource, num_train_views: int) -> FeatureCache:
        """Return where it is kept, which has room."""
        section, splits = self.config.readout, self.feeder.splits
        root = default_cache_dir("features") if section.cache_dir is None else Path(section.cache_dir).expanduser()
        cache = FeatureCache(root, int(section.cache_limit_gb * 1e9))
        counts = [len(splits.train)] * num_train_views + ([] if splits.val is None else [len(splits.val)])
        sizes = [size_of(source.shapes(count), np.dtype(source.dtype)) for count in counts]
        what, remedy = "the frozen activations", "lower tuning.cache_prefix, or set it to off"
        on_main(self._accelerator, lambda: cache.check_space(sizes, what=what, section="readout", remedy=remedy))
        return cache

    def _batches(self, pictures: ImageSet, view: int | None) -> Callable[[], Iterator[Batch]]:
        """Return what gives this process's share of pictures in order, varied as in epoch `view`; None as val is."""
        preprocess = self.feeder.preprocess
        transform = build_eval_transform(preprocess) if view is None else train_transform_of(self.config, preprocess)
        return lambda: eval_batches(
            pictures,
            transform,
            batch_size=_BATCH,
            seed=self._plan.seed,
            epoch=view or 0,
            rank=self._accelerator.process_index,
            world_size=self._accelerator.num_processes,
            num_workers=num_workers_of(self.config, self._accelerator),
            pin_memory=self._accelerator.device.type == "cuda",
        )

    def _scorer(self, boundary: int, rows: np.ndarray) -> Callable[[nn.Module], EvalResult]:
        """Return what scores a network on kept val pictures."""
        val = self.feeder.splits.val
        assert val is not None  # there are rows of it

        def make_worker(*args: Any, **options: Any) -> Worker:
            return KeptWorker(*args, views={0: rows}, num_views=1, **options)

        def scored(model: nn.Module) -> EvalResult:
            assert isinstance(model, Backbone)
            half = SecondHalf(model, boundary)
            return self.feeder.score(half, val, make_worker=make_worker)

        return scored
