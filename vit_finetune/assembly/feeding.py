"""Batches of a run's pictures for its processes, and the network scored on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose

from vit_finetune.assembly.keeping import num_workers_of, picture_sources
from vit_finetune.assembly.network import train_transform_of
from vit_finetune.assembly.skipping import SkippedImages
from vit_finetune.assembly.waiting import BytesBatch, DataWait
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.bad_images import BadImage
from vit_finetune.data.batch import Batch
from vit_finetune.data.cache import CachedImages
from vit_finetune.data.corruptions import Corruption, over_corruptions
from vit_finetune.data.loader import eval_batches, train_batches
from vit_finetune.data.pixels import Normalise
from vit_finetune.data.prepared import EvalPreparation
from vit_finetune.data.transforms import Transform, build_eval_crop, build_eval_rest
from vit_finetune.data.workers import Worker
from vit_finetune.evaluation import (
    WISE_FT_ALPHAS,
    Blend,
    Calibration,
    EvalResult,
    calibrate,
    score,
    tune_thresholds,
    wise_ft_blend,
)
from vit_finetune.evaluation.multilabel import HALF
from vit_finetune.models import Backbone, MergedTokens
from vit_finetune.training import RunConsole, TrainPlan
from vit_finetune.training.sharding import in_step

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Feeder:
    """Batches of a run's pictures for this process."""

    config: Config
    splits: Splits
    preprocess: PreprocessSpec
    plan: TrainPlan
    accelerator: Accelerator
    skipped: SkippedImages
    sources: Mapping[str, ImageSet]
    wait: DataWait = field(default_factory=DataWait)

    @property
    def _as_bytes(self) -> bool:
        """Whether pictures travel to the device as bytes; on a CPU it is quicker to normalise each in its cache."""
        return self.accelerator.device.type == "cuda" and not self.config.data.random_erasing

    @cached_property
    def _normalise(self) -> Normalise:
        """What bytes are normalised by on the device."""
        return Normalise(self.preprocess.mean, self.preprocess.std).to(self.accelerator.device)

    def _arriving(self, batch: Batch) -> Batch | BytesBatch:
        """Return a batch whose images come out normalised."""
        if batch.images.dtype != torch.uint8:
            return batch
        return BytesBatch(batch, self._normalise, self.accelerator.device)

    def _share(self, make_worker: Callable[..., Worker]) -> dict[str, Any]:
        accelerator, decodes = self.accelerator, make_worker is Worker  # rows of a table need no other processes
        return {
            "make_worker": make_worker,
            "rank": accelerator.process_index,
            "world_size": accelerator.num_processes,
            "num_workers": num_workers_of(self.config, accelerator) if decodes else 0,
            "pin_memory": accelerator.device.type == "cuda",
            "skip_bad": self.skipped.allowed,
        }

    def lines(self) -> list[str]:
        """Return what a person wants to know at the end about how the pictures came."""
        workers = num_workers_of(self.config, self.accelerator)
        return [*self.skipped.lines(), *self.wait.lines(self.config.data, num_workers=workers)]

    def train(
        self, start_step: int, *, until: int | None = None, make_worker: Callable[..., Worker] = Worker
    ) -> Iterator[list[Batch | BytesBatch]]:
        """Yield the micro-batches of every step from `start_step` to the last, or to `until` steps done.

        Args:
            start_step: steps done.
            until: steps done then.
            make_worker: see `train_batches`.
        """
        end = self.plan.num_steps if until is None else until
        parts = (self._train_part(*part, make_worker=make_worker) for part in self.plan.stretches(start_step, end))
        steps = chain.from_iterable(parts)
        return self.wait.timed([self._arriving(batch) for batch in step] for step in steps)

    def _train_part(self, first: int, end: int, *, make_worker: Callable[..., Worker]) -> Iterator[list[Batch]]:
        """Yield the micro-batches of the steps [first, end), whose pictures have one size."""
        plan, size = self.plan, self.plan.size_at(first)
        preprocess = self.preprocess if size is None else self.preprocess.with_size(*size)
        return train_batches(
            self.sources["train"],
            train_transform_of(self.config, preprocess, as_bytes=self._as_bytes),
            seed=plan.seed,
            global_batch_size=plan.global_batch_size,
            per_device_batch_size=plan.per_device_batch_size,
            start_step=first,
            num_steps=end - first,
            balanced=self.config.train.imbalance == "balanced_sampler",
            in_pairs=self.config.train.mixes,
            **self._share(make_worker),
        )

    def val_scorer(self) -> Callable[[nn.Module], EvalResult] | None:
        """Return what scores a network on the val split, or None where there is none."""
        val = self.splits.val
        return None if val is None else lambda model: self.score(model, val)

    def score_at_the_end(self, model: nn.Module) -> tuple[EvalResult | None, list[float] | None, Calibration | None]:
        """Score the test split if there is one, and val, each at the most once.

        Returns:
            The figures with predictions, None without such pictures; the probability from which on a picture has
            each class, tuned on val, None for one class a picture; and for one class a picture the temperature fitted
            on val, None without val. Test's figures are at these thresholds, val's at a half: at thresholds that it
            tuned itself they would flatter.
        """
        several, val, test = self.splits.train.is_multilabel, self.splits.val, self.splits.test
        on_val = None if val is None else self.score(model, val, keep_predictions=True)
        thresholds = None
        if several:
            half = [HALF] * len(self.splits.class_names)
            thresholds = half if on_val is None else tune_thresholds(on_val.labels, on_val.probabilities)
        result = on_val
        if test is not None:
            result = self.score(model, test, keep_predictions=True, thresholds=thresholds)
        if several or on_val is None or result is None:
            return result, thresholds, None
        return result, thresholds, calibrate(on_val, result, measured_on="val" if test is None else "test")

    def score_beside(
        self, model: Backbone, pictures: ImageSet, *, thresholds: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """Score what the recipe wants to know beside the plain figures.

        Args:
            model: the finished network.
            pictures: the split of the plain figures.
            thresholds: for several classes a picture, from which probability on it has each.

        Returns:
            `corruptions`, of every corruption; `merged`, with tokens merged; each only where it is asked for.
        """
        section, beside = self.config.evaluation, dict[str, Any]()
        scored = partial(self.score, pictures=pictures, thresholds=thresholds)
        if section.corruptions:
            beside["corruptions"] = over_corruptions(lambda corruption: scored(model, corruption=corruption).metrics)
        if section.merge_tokens:
            merged = scored(MergedTokens(model, section.merge_tokens)).metrics
            beside["merged"] = {"merge_tokens": section.merge_tokens, **merged}
        return beside

    def _eval_transform(self, corruption: Corruption | None, *, is_cropped: bool) -> Transform:
        """Return the evaluation transform, or its second half for pictures that are cropped already."""
        rest = build_eval_rest(self.preprocess, corruption=corruption, as_bytes=self._as_bytes)
        return rest if is_cropped else Compose([build_eval_crop(self.preprocess), rest])

    def score(
        self,
        model: nn.Module,
        pictures: ImageSet,
        *,
        keep_predictions: bool = False,
        corruption: Corruption | None = None,
        thresholds: Sequence[float] | None = None,
        make_worker: Callable[..., Worker] = Worker,
    ) -> EvalResult:
        """Score every picture that can be read once over all processes."""
        size = self.config.evaluation.batch_size
        size = self.plan.per_device_batch_size if isinstance(size, str) else size
        kept = self.sources.get(self.skipped.split_of(pictures))
        is_cropped = isinstance(kept, CachedImages) and isinstance(kept.prepare, EvalPreparation)
        batches = eval_batches(
            kept if kept is not None and is_cropped else pictures,
            self._eval_transform(corruption, is_cropped=is_cropped),
            batch_size=size,
            seed=0 if corruption is None else corruption.seed(self.plan.seed),
            **self._share(make_worker),
        )
        bad: list[BadImage] = []
        arriving = (self._arriving(batch) for batch in self.skipped.watch(batches, bad))
        return score(
            model,
            in_step(arriving, model, self.accelerator, image_size=self.preprocess.input_size),
            class_names=self.splits.class_names,
            num_expected=lambda: self.skipped.num_readable(pictures, bad),
            accelerator=self.accelerator,
            keep_predictions=keep_predictions,
            multilabel=pictures.is_multilabel,
            thresholds=thresholds,
        )


def open_feeder(
    config: Config,
    splits: Splits,
    *,
    preprocess: PreprocessSpec,
    plan: TrainPlan,
    accelerator: Accelerator,
    console: RunConsole,
) -> Feeder:
    """Return what feeds a run; where the recipe keeps decoded pictures, they are decoded now.

    Args:
        config: of the run; its folder holds the manifest already.
        splits: the pictures.
        preprocess: the evaluation transform.
        plan: the derived numbers.
        accelerator: of the run.
        console: told what is kept and what is left out.

    Raises:
        RequestError: there is no room for the cache, or a picture cannot be read.
        WorkError: the disk is full, or the processes do not share the cache.
    """
    skipped = SkippedImages(config.data, splits, Path(config.run.dir), accelerator, console)
    sources = picture_sources(
        config, splits, preprocess=preprocess, plan=plan, accelerator=accelerator, console=console
    )
    return Feeder(config, splits, preprocess, plan, accelerator, skipped, sources)


def blend_with_start(config: Config, model: Backbone, feeder: Feeder, start: Mapping[str, Tensor]) -> Blend:
    """Put the best point between the weights before and after fine-tuning into the network, on every process alike.

    Args:
        config: says which points; the plan, by which metric of val.
        model: with the weights after fine-tuning; it is changed.
        feeder: of the run.
        start: the weights before.
    """
    alphas = WISE_FT_ALPHAS if config.train.wise_ft is True else config.train.wise_ft or ()
    score_val = feeder.val_scorer()
    assert score_val is not None  # `make_plan` refuses a run without a val split

    def score_of(state: Mapping[str, Tensor]) -> dict[str, float]:
        model.load_state_dict(state)
        return score_val(model).metrics

    end = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    blend = wise_ft_blend(start, end, score=score_of, metric=feeder.plan.metric, alphas=alphas)
    model.load_state_dict(blend.state)
    return blend
