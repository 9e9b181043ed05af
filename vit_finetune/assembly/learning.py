"""What a run minimises and what it is chosen by, counted from its pictures."""

from __future__ import annotations

import math

from vit_finetune.common.additions import ADDED_METRICS
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.evaluation import METRICS, MULTILABEL_METRICS
from vit_finetune.training import TrainPlan
from vit_finetune.training.mix import PairMixing
from vit_finetune.training.objective import MULTILABEL, Objective, counted

# From this ratio of the largest to the smallest class on, a model that ignores the small ones looks good by accuracy.
SKEWED_FROM = 3.0


def settle_metric(config: Config, splits: Splits) -> tuple[Config, list[str]]:
    """Return the configuration with a named `evaluation.metric`, and what to tell about it.

    `auto` is mean_average_precision for several classes a picture, macro_accuracy where the training classes are
    skewed, else accuracy.

    Raises:
        RequestError: the task does not fit the labels, or the metric does not fit the task.
    """
    _check_task(config, splits)
    metric = config.evaluation.metric
    told: list[str] = []
    if metric == "auto" and config.train.task == MULTILABEL:
        metric = "mean_average_precision"
    elif metric == "auto":
        counts = [int(count) for count in splits.train.class_counts(len(splits.class_names)) if count]
        ratio = max(counts) / min(counts)
        metric = "macro_accuracy" if ratio >= SKEWED_FROM else "accuracy"
        if metric != "accuracy":
            told = [
                f"metric   macro_accuracy chooses the best: the largest class has {ratio:.1f} times the training "
                "pictures of the smallest (evaluation.metric: accuracy counts every picture alike)"
            ]
    known = MULTILABEL_METRICS if config.train.task == MULTILABEL else (*METRICS, *ADDED_METRICS)
    if metric not in known:
        raise RequestError(
            f"evaluation.metric {metric} is not for train.task {config.train.task}; use one of {', '.join(known)}"
        )
    if metric == "top5" and len(splits.class_names) < 5:
        classes = len(splits.class_names)
        raise RequestError(f"evaluation.metric top5 says nothing about {classes} classes; use accuracy")
    if metric == config.evaluation.metric:
        return config, told
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metric": metric})}), told


def _check_task(config: Config, splits: Splits) -> None:
    """Refuse labels that are not of the task."""
    several = splits.train.is_multilabel
    if several and config.train.task != MULTILABEL:
        raise RequestError("these pictures have lists of classes; set train.task: multilabel")
    if not several and config.train.task == MULTILABEL:
        raise RequestError(
            "train.task multilabel needs a list of classes for each picture, and these have one class each; give a "
            "table with a column of lists, or lists from Python (splits_from)"
        )


def make_objective(config: Config, splits: Splits, plan: TrainPlan) -> Objective:
    """Return what the run minimises.

    Raises:
        RequestError: `train.imbalance` cannot be counted from these pictures.
    """
    train, counts = config.train, splits.train.class_counts(len(splits.class_names)).tolist()
    weights = splits.train.class_weights(len(splits.class_names)).tolist()
    if train.imbalance == "balanced_sampler" and sum(count > 0 for count in counts) < 2:
        raise RequestError("train.imbalance balanced_sampler balances classes, and the training split has one")
    mixing = None
    if train.mixes:
        mixing = PairMixing(
            seed=plan.seed,
            mixup_alpha=train.mixup_alpha,
            cutmix_alpha=train.cutmix_alpha,
            mixup_prob=train.mixup_prob,
            mixup_switch_prob=train.mixup_switch_prob,
            off_step=_first_step_of(train.mixup_off_epoch, plan),
        )
    return Objective(
        task=train.task,
        label_smoothing=train.label_smoothing,
        mixing=mixing,
        **counted(
            train.imbalance,
            task=train.task,
            counts=dict(zip(splits.class_names, weights, strict=True)),
            num_train=splits.train.total_weight,
        ),
    )


def _first_step_of(epoch: float | None, plan: TrainPlan) -> int | None:
    """Return the first step that begins at an epoch or later."""
    return None if epoch is None else math.ceil(round(epoch * plan.num_train / plan.global_batch_size, 9))
