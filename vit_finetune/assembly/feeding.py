"""Batches of a run's pictures for its processes, and the network scored on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vit_finetune.assembly.network import train_transform_of
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.corruptions import Corruption, over_corruptions
from vit_finetune.data.loader import Batch, default_num_workers, eval_batches, train_batches
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.evaluation import WISE_FT_ALPHAS, Blend, EvalResult, score, tune_thresholds, wise_ft_blend
from vit_finetune.evaluation.multilabel import HALF
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

    def _share(self) -> dict[str, Any]:
        accelerator, workers = self.accelerator, self.config.data.num_workers
        if isinstance(workers, str):
            workers = default_num_workers(accelerator.device.type, accelerator.num_processes)
        return {
            "rank": accelerator.process_index,
            "world_size": accelerator.num_processes,
            "num_workers": workers,
            "pin_memory": accelerator.device.type == "cuda",
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
            balanced=self.config.train.imbalance == "balanced_sampler",
            in_pairs=self.config.train.mixes,
            **self._share(),
        )

    def val_scorer(self) -> Callable[[nn.Module], EvalResult] | None:
        """Return what scores a network on the val split, or None where there is none."""
        val = self.splits.val
        return None if val is None else lambda model: self.score(model, val)

    def tuned_thresholds(self, model: nn.Module) -> list[float] | None:
        """Return the probability from which on a picture has each class, tuned on val; None for one class a picture."""
        if not self.splits.train.is_multilabel:
            return None
        if self.splits.val is None:
            return [HALF] * len(self.splits.class_names)
        found = self.score(model, self.splits.val, keep_predictions=True)
        return tune_thresholds(found.labels, found.probabilities)

    def score_corrupted(
        self, model: nn.Module, pictures: ImageSet, *, thresholds: Sequence[float] | None = None
    ) -> dict[str, Any]:
        """Score every picture under every corruption."""

        def figures(corruption: Corruption) -> dict[str, float]:
            return self.score(model, pictures, corruption=corruption, thresholds=thresholds).metrics

        return over_corruptions(figures)

    def score(
        self,
        model: nn.Module,
        pictures: ImageSet,
        *,
        keep_predictions: bool = False,
        corruption: Corruption | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> EvalResult:
        """Score every picture once over all processes."""
        size = self.config.evaluation.batch_size
        size = self.plan.per_device_batch_size if isinstance(size, str) else size
        return score(
            model,
            eval_batches(
                pictures,
                build_eval_transform(self.preprocess, corruption=corruption),
                batch_size=size,
                seed=0 if corruption is None else corruption.seed(self.plan.seed),
                **self._share(),
            ),
            class_names=self.splits.class_names,
            num_expected=len(pictures),
            accelerator=self.accelerator,
            keep_predictions=keep_predictions,
            multilabel=pictures.is_multilabel,
            thresholds=thresholds,
        )


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
