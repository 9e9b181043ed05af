"""What a run is chosen by and what it minimises, counted from its pictures; what contradicts itself is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vit_finetune import Config, RequestError
from vit_finetune.assembly import make_objective, settle_metric
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.image_set import FileStore


def splits_of(labels: np.ndarray, names: tuple[str, ...]) -> Splits:
    """Return a data set of which only the labels matter here."""
    store = FileStore(Path(), tuple(map(str, range(len(labels)))))
    return Splits(train=ImageSet(store, labels), val=None, test=None, class_names=names)


def config_of(metric: str = "auto", **train: Any) -> Config:
    """Return a configuration."""
    return Config.load(
        {
            "model": {"name": "vit_tiny_patch16_224", "pretrained": None},
            "data": {"root": "photos"},
            "train": {"epochs": 2, "global_batch_size": 4, **train},
            "evaluation": {"metric": metric},
        }
    )


EVEN = splits_of(np.repeat([0, 1, 2], [4, 5, 6]), ("a", "b", "c"))
SKEWED = splits_of(np.repeat([0, 1, 2], [12, 5, 4]), ("a", "b", "c"))
SEVERAL = splits_of(np.array([[1, 0], [1, 1], [0, 0]], dtype=np.uint8), ("a", "b"))
PLAN: Any = SimpleNamespace(seed=7, num_train=15, global_batch_size=4)


@pytest.mark.parametrize(
    ("splits", "task", "metric"),
    [
        (EVEN, "multiclass", "accuracy"),
        (SKEWED, "multiclass", "macro_accuracy"),
        (SEVERAL, "multilabel", "mean_average_precision"),
    ],
    ids=["even", "skewed", "several"],
)
def test_settle_metric__auto(splits: Splits, task: str, metric: str) -> None:
    """auto follows the data, and a choice that nobody asked for is told with its reason."""
    settled, told = settle_metric(config_of(task=task), splits)
    assert settled.evaluation.metric == metric
    assert [line.split(":")[0] for line in told] == (
        ["metric   macro_accuracy chooses the best"] if splits is SKEWED else []
    )
    assert all("3.0 times" in line for line in told)


def test_settle_metric__what_is_asked_for_stays() -> None:
    """A named metric is kept on skewed classes too, and nothing is told."""
    config = config_of("accuracy")
    assert settle_metric(config, SKEWED) == (config, [])


@pytest.mark.parametrize(
    ("splits", "metric", "train", "message"),
    [
        (
            EVEN,
            "auto",
            {"task": "multilabel"},
            "needs a list of classes for each picture, and these have one",
        ),
        (SEVERAL, "auto", {}, "these pictures have lists of classes; set train.task: multilabel"),
        (EVEN, "mean_average_precision", {}, "is not for train.task multiclass; use one of accuracy, macro_accuracy"),
        (
            SEVERAL,
            "top5",
            {"task": "multilabel"},
            "is not for train.task multilabel; use one of mean_a",
        ),
        (EVEN, "top5", {}, "top5 says nothing about 3 classes"),
    ],
)
def test_settle_metric__refuses(splits: Splits, metric: str, train: dict[str, Any], message: str) -> None:
    """Labels that are not of the task, mixed or not, and metrics that are not, are refused with what to do."""
    with pytest.raises(RequestError, match=message):
        settle_metric(config_of(metric, **train), splits)
    if train.get("task") == "multilabel" and splits is EVEN:
        with pytest.raises(RequestError, match=message):
            settle_metric(config_of(metric, mixup_alpha=0.8, **train), splits)


def test_make_objective__takes_every_option() -> None:
    """Every key of the section reaches the objective; the off epoch becomes the first step at or after it."""
    config = config_of(
        label_smoothing=0.1,
        imbalance="logit_adjustment",
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        mixup_prob=0.7,
        mixup_switch_prob=0.3,
        mixup_off_epoch=1.5,
    )
    found = make_objective(config, EVEN, PLAN)
    assert (found.task, found.label_smoothing, found.class_weights) == ("multiclass", 0.1, None)
    assert found.log_prior is not None
    assert found.log_prior.exp().tolist() == pytest.approx([4 / 15, 5 / 15, 6 / 15])
    mixing = found.mixing
    assert mixing is not None
    assert (mixing.seed, mixing.mixup_alpha, mixing.cutmix_alpha) == (7, 0.8, 1.0)
    assert (mixing.mixup_prob, mixing.mixup_switch_prob, mixing.off_step) == (0.7, 0.3, 6)  # 22.5 pictures / 4


def test_make_objective__a_sampler_needs_two_classes() -> None:
    """Balancing one class is refused."""
    one = splits_of(np.zeros(5, dtype=np.int64), ("a", "b"))
    with pytest.raises(RequestError, match="balances classes, and the training split has one"):
        make_objective(config_of(imbalance="balanced_sampler"), one, PLAN)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"mixup_alpha": 0.8, "global_batch_size": 5}, "train.global_batch_size 5 is odd"),
        ({"mixup_alpha": 0.8, "per_device_batch_size": 3}, "train.per_device_batch_size 3 is odd"),
        ({"mixup_off_epoch": 3}, "train.mixup_off_epoch does nothing without train.mixup_alpha or train.cutmix_alpha"),
        ({"task": "multilabel", "imbalance": "balanced_sampler"}, "needs one class per picture"),
        ({"task": "multilabel", "budget": "10m", "epochs": None}, "train.budget begins with readouts"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"early_stopping_patience": 0}, "early_stopping_patience"),
    ],
)
def test_config__refuses_contradictions(train: dict[str, Any], message: str) -> None:
    """What cannot go together is refused when the recipe is read."""
    with pytest.raises(RequestError, match=message):
        config_of(**train)


def test_config__readouts_train_nothing() -> None:
    """Options of training that a readout would not read are refused."""
    values = config_of(ema_decay=0.9).model_dump() | {"tuning": {"mode": "readout"}}
    with pytest.raises(RequestError, match="train.ema_decay does nothing with tuning.mode readout"):
        Config.load(values)
