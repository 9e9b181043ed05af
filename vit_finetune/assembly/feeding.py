"""Batches of a run's pictures for its processes, and the network scored on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vit_finetune.assembly.network import train_transform_of
from vit_finetune.assembly.skipping import SkippedImages
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.bad_images import BadImage
from vit_finetune.data.batch import Batch
from vit_finetune.data.corruptions import Corruption, over_corruptions
from vit_finetune.data.loader import default_num_workers, eval_batches, train_batches
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.evaluation import WISE_FT_ALPHAS, Blend, EvalResult, score, wise_ft_blend
from vit_finetune.models import Backbone
from vit_finetune.training import TrainPlan

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

    def _share(self) -> dict[str, Any]:
        accelerator, workers = self.accelerator, self.config.data.num_workers
        if isinstance(workers, str):
            workers = default_num_workers(accelerator.device.type, accelerator.num_processes)
        return {
            "rank": accelerator.process_index,
            "world_size": accelerator.num_processes,
            "num_workers": workers,
            "pin_memory": accelerator.device.type == "cuda",
            "skip_bad": self.skipped.allowed,
        }

    def train(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of every step from `start_step` to the last."""
        plan = self.plan
        return train_batches(
            self.splits.train,
            train_transform_of(self.config, self.preprocess),
            seed=plan.seed,
            global_batch_size=plan.global_batch_size,
            per_device_batch_size=plan.per_device_batch_size,
            start_step=start_step,
            num_steps=plan.num_steps - start_step,
            **self._share(),
        )

    def val_scorer(self, model: Backbone) -> Callable[[], EvalResult] | None:
        """Return what scores the val split, or None where there is none."""
        val = self.splits.val
        return None if val is None else lambda: self.score(model, val)

    def score_corrupted(self, model: Backbone, pictures: ImageSet) -> dict[str, Any]:
        """Score every picture under every corruption."""
        return over_corruptions(lambda corruption: self.score(model, pictures, corruption=corruption).metrics)

    def score(
        self,
        model: Backbone,
        pictures: ImageSet,
        *,
        keep_predictions: bool = False,
        corruption: Corruption | None = None,
    ) -> EvalResult:
        """Score every picture that can be read once over all processes."""
        size = self.config.evaluation.batch_size
        size = self.plan.per_device_batch_size if isinstance(size, str) else size
        batches = eval_batches(
            pictures,
            build_eval_transform(self.preprocess, corruption=corruption),
            batch_size=size,
            seed=0 if corruption is None else corruption.seed(self.plan.seed),
            **self._share(),
        )
        bad: list[BadImage] = []
        return score(
            model,
            self.skipped.watch(batches, bad),
            class_names=self.splits.class_names,
            num_expected=lambda: self.skipped.num_readable(pictures, bad),
            accelerator=self.accelerator,
            keep_predictions=keep_predictions,
        )


def blend_with_start(config: Config, model: Backbone, feeder: Feeder, start: Mapping[str, Tensor]) -> Blend:
    """Put the best point between the weights before and after fine-tuning into the network, on every process alike.

    Args:
        config: says which points, and the metric that decides on val.
        model: with the weights after fine-tuning; it is changed.
        feeder: of the run.
        start: the weights before.
    """
    alphas = WISE_FT_ALPHAS if config.train.wise_ft is True else config.train.wise_ft or ()
    score_val = feeder.val_scorer(model)
    assert score_val is not None  # `make_plan` refuses a run without a val split

    def score_of(state: Mapping[str, Tensor]) -> dict[str, float]:
        model.load_state_dict(state)
        return score_val().metrics

    end = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    blend = wise_ft_blend(start, end, score=score_of, metric=config.evaluation.metric, alphas=alphas)
    model.load_state_dict(blend.state)
    return blend
