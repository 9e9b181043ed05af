"""The rungs of the ladder, as data: what each one tries, from the cheapest up, and the run that it is.

A rung is an ordinary run in a folder of its own, with the recipe's sections and a few of its own laid over them. So it
resumes, checks and reports as every run does.

Sources: linear probing first, then fine-tuning from its head: Kumar et al. 2022 (arXiv 2202.10054). Starting again
from the best weights with a fresh cosine: Loshchilov and Hutter 2016 (1608.03983). Averaging what was fine-tuned from
one start: Wortsman et al. 2022 (2203.05482) and, with the start itself, 2021 (2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vit_finetune.common.layout import rung_dir
from vit_finetune.config import FOR_NETWORKS, Config, TrainConfig
from vit_finetune.ladder.decisions import RUN, Decision, Log
from vit_finetune.ladder.pace import PILOT_STEPS

READOUT, TRAINING, BLEND = "readout", "training", "blend"
_PILOT_SMALL_STEPS = 4
PILOT = "pilot"  # the name of the folder of what is only timed
_SAVE_EVERY_MINUTES = 2.0
_WARMUP = 0.1  # of the steps: what the MAE and BEiT recipes give of theirs, 5 epochs of 50 to 100, is of this size
# Adam's first steps are all of the peak rate's length; a shorter warm-up spoils the network (docs/small_folders.md).
_LEAST_WARMUP_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Something to try.

    Attributes:
        name: of its folder below `rungs/`, and in every table.
        kind: READOUT (on frozen features), TRAINING (of the whole network) or BLEND (of what was trained).
        what: for people.
        like: for a readout after the first: an earlier one, and how many times that one's seconds it takes.
        epochs: for training: the most passes over the training pictures.
        share: for training: of the time left that it may take.
        read_like: for training: what a readout of its network, the next rung, will be like.
        start: rungs whose network it may start from, the most wanted first; of a blend: what may go in. A readout that
            names some needs one of them; training without one starts from the recipe's weights.
        settings: sections of the run's configuration, laid over the recipe's.
    """

    name: str
    kind: str
    what: str
    like: tuple[str, float] | None = None
    epochs: int = 0
    share: float = 1.0
    read_like: tuple[str, float] | None = None
    start: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_READOUT: Mapping[str, str] = {"mode": "readout"}
# kNN and logistic regression are rungs of their own; of a tuned network its own head is the logistic regression.
_DEEP = {"tuning": _READOUT, "readout": {"name": "auto", "candidates": ("multilayer", "spatial")}}

# The factors of `like` were measured with a ViT-S/14 on 360 to 880 pictures of three to ten classes, on two threads.
RUNGS = (
    Rung(
        name="knn",
        kind=READOUT,
        what="nearest neighbours of frozen features",
        settings={"tuning": _READOUT, "readout": {"name": "knn"}},
    ),
    Rung(
        name="readout",
        kind=READOUT,
        what="several blocks, or the grid of patches, of frozen features",
        like=("knn", 0.7),
        settings=_DEEP,
    ),
    Rung(
        name="logistic",
        kind=READOUT,
        what="logistic regression on frozen features",
        like=("knn", 0.6),
        settings={"tuning": _READOUT, "readout": {"name": "logistic"}},
    ),
    Rung(
        name="fine_tune",
        kind=TRAINING,
        what="the whole network, from the logistic regression's head",
        epochs=10,
        share=0.4,
        read_like=("readout", 1.0),
        start=("logistic",),
    ),
    Rung(
        name="fine_tune_readout",
        kind=READOUT,
        what="several blocks, or the grid of patches, of the fine-tuned network's features",
        like=("readout", 1.0),
        start=("fine_tune",),
        settings=_DEEP,
    ),
    Rung(
        name="longer",
        kind=TRAINING,
        what="the whole network again, from where fine-tuning ended",
        epochs=30,
        share=0.8,
        read_like=("readout", 1.0),
        start=("fine_tune", "logistic"),
    ),
    Rung(
        name="longer_readout",
        kind=READOUT,
        what="several blocks, or the grid of patches, of that network's features",
        like=("readout", 1.0),
        start=("longer",),
        settings=_DEEP,
    ),
    Rung(
        name="blend",
        kind=BLEND,
        what="averages of what was trained, and with what it started from (soup, WiSE-FT)",
        start=("logistic", "fine_tune", "longer"),
    ),
)


def rung_config(config: Config, rung: Rung, decision: Decision, log: Log) -> Config:
    """Return the configuration of the run that a rung is.

    Args:
        config: of the run under a budget.
        rung: a readout, or training.
        decision: how many steps, and from which rung's network.
        log: of the run: threads and precision, settled.
    """
    run_dir = Path(config.run.dir)
    values = config.model_dump(mode="json")
    steps = decision.num_steps or 1
    own: dict[str, Mapping[str, Any]] = {
        "train": {"budget": None, "steps": steps, "mixed_precision": log.mixed_precision},
        "run": {"dir": str(rung_dir(run_dir, rung.name)), "num_threads": log.num_threads, "report": "off"},
        "evaluation": {"corruptions": False},  # of the best rung's model alone, at the end
        "checkpoint": {
            "keep_last": 1,
            "every_minutes": config.checkpoint.every_minutes or _SAVE_EVERY_MINUTES,
            "asynchronous": config.checkpoint.asynchronous,
        },
    }
    if rung.kind == READOUT:
        # What a recipe says about training a network says nothing to readouts.
        own["train"] = {**own["train"], **{key: TrainConfig.model_fields[key].default for key in FOR_NETWORKS}}
        own["data"] = {"weight_column": None}
    if rung.kind == TRAINING:
        # The schedule ends where the rung does, so its last step is its result: scoring on the way would cost time, and
        # where val tells steps apart no more, it would keep the earliest.
        own["evaluation"] = {**own["evaluation"], "every_steps": steps, "every_epochs": None}
        warmup = min(steps // 2, max(math.ceil(_WARMUP * steps), _LEAST_WARMUP_STEPS))
        own["schedule"] = {"warmup_steps": warmup, "warmup_epochs": None}
    if decision.starts_from is not None:
        # Architecture, sizes and preprocessing are the folder's; what the recipe asked for is in it already.
        start = str(rung_dir(run_dir, decision.starts_from) / "model")
        own["model"] = {"pretrained": start, "name": None, "overrides": {}}
        if rung.kind == TRAINING:
            own["model"] = {**own["model"], "head_init": "pretrained"}
    for section in (own, rung.settings):
        for name, keys in section.items():
            values[name] = {**values.get(name, {}), **keys}
    return Config.load(values)


def pilot_config(config: Config, rung: Rung, log: Log) -> Config:
    """Return the configuration of a few steps of a training rung, in a folder of their own, to be timed.

    Args:
        config: of the run under a budget.
        rung: the training rung.
        log: of the run.

    Returns:
        `PILOT_STEPS` steps at the network's picture size, after two at each smaller one that the recipe has.
    """
    small = _PILOT_SMALL_STEPS if config.train.progressive_sizes else 0
    steps = small + PILOT_STEPS
    decision = Decision(rung=PILOT, decision=RUN, num_steps=steps, reason="", elapsed_seconds=0.0)
    pilot = rung_config(config, replace(rung, name=PILOT), decision, log)
    return pilot if not small else Config.load(pilot, overrides=[f"train.progressive_until={small / steps}"])
