"""The run that a rung is: what it lays over the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vit_finetune import Config
from vit_finetune.config import TrainConfig
from vit_finetune.ladder.decisions import RUN, Decision, Log
from vit_finetune.ladder.rungs import RUNGS, pilot_config, rung_config
from vit_finetune.training.stages import plan_sizes

RUNG = {rung.name: rung for rung in RUNGS}
LOG = Log(budget="1m", config={}, data="", num_threads=1, mixed_precision="no", num_processes=1)


def recipe_of(**train: Any) -> Config:
    """Return a recipe under a budget with these options of training."""
    return Config.load(
        {
            "model": {"name": "vit_tiny_patch16_224", "pretrained": None},
            "data": {"root": "photos"},
            "train": {"budget": "1m", **train},
            "run": {"dir": "runs/photos"},
        }
    )


def config_of(rung: str, num_steps: int | None, **train: Any) -> Config:
    """Return the configuration of a rung under a recipe with these options of training."""
    decision = Decision(rung=rung, decision=RUN, num_steps=num_steps, reason="", elapsed_seconds=0.0)
    return rung_config(recipe_of(**train), RUNG[rung], decision, LOG)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (15, 7), (28, 14), (40, 20), (199, 20), (201, 21), (1000, 100)])
def test_rung_config__warmup(steps: int, warmup: int) -> None:
    """A tenth of the steps, 20 at the least and half at the most."""
    assert config_of("fine_tune", steps).schedule.warmup_steps == warmup


def test_rung_config__training_does_as_the_recipe_says() -> None:
    """Mixing, averages and weights of classes reach the rungs that fine-tune, and no others."""
    options = {"mixup_alpha": 0.8, "ema_decay": 0.9, "imbalance": "loss_weights", "label_smoothing": 0.1}
    tuned, read = config_of("longer", 100, **options).train, config_of("readout", None, **options).train
    assert {name: getattr(tuned, name) for name in options} == options
    assert (tuned.steps, tuned.budget) == (100, None)
    assert (read.mixup_alpha, read.ema_decay, read.imbalance, read.label_smoothing) == (0.0, None, "none", 0.1)


@pytest.mark.parametrize(
    "options", [{"early_stopping_patience": 3}, {"cutmix_alpha": 1.0, "mixup_prob": 0.5, "mixup_off_epoch": 2.0}]
)
def test_rung_config__a_readout_does_not_choke_on_training(options: dict[str, Any]) -> None:
    """A recipe with any option of training has readouts among its rungs, which leave it out."""
    assert {name: getattr(config_of("longer", 100, **options).train, name) for name in options} == options
    read = config_of("readout", None, **options).train
    assert [getattr(read, name) for name in options] == [TrainConfig.model_fields[name].default for name in options]


def test_pilot_config__sees_every_size() -> None:
    """Four steps at the network's size; four before them where small pictures come first."""
    plain, mixed = (pilot_config(recipe_of(progressive_sizes=sizes), RUNG["fine_tune"], LOG) for sizes in ((), "auto"))
    assert (plain.train.steps, plain.evaluation.every_steps, Path(plain.run.dir).name) == (4, 4, "pilot")
    assert (mixed.train.steps, mixed.evaluation.every_steps) == (8, 8)
    sizes = plan_sizes("auto", until=mixed.train.progressive_until, num_steps=8, target=(98, 98), patch_size=(14, 14))
    assert [size.first_step for size in sizes] == [0, 2, 4]


def test_rung_config__has_a_folder_of_its_own() -> None:
    """A rung's run lies below its name."""
    assert Path(config_of("fine_tune", 50).run.dir) == Path("runs/photos/rungs/fine_tune")
