"""How fast this machine is with this network and these pictures, and what a rung will take.

Seconds are measured on a few batches, never assumed: a probe of three training steps is a run like any other, so that
decoding, optimizer, processes and checkpoints are all in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import numpy as np

from vit_finetune.config import TrainConfig
from vit_finetune.data import ImageSet, Splits
from vit_finetune.ladder.decisions import PLAN_FILE
from vit_finetune.training.journal import Journal

PILOT_STEPS = 4
_PILOT_PICTURES = 32
# Steps are not equally long, other work runs on the machine, and a cut rung is worth nothing: this much is kept back.
SAFETY = 1.15
# A step costs three forward passes or more. Before steps are measured a forward pass is a high guess, since the first
# rung's loading is in it, so a step is taken for less: a rung that may fit is measured, not skipped.
_FORWARDS_PER_STEP = 2.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measured seconds.

    Attributes:
        overhead: of a run beside its steps and its scoring: opening data and weights, writing the model.
        forward: per picture that is scored.
        step: per optimizer step of the whole network, at the network's picture size; None before it was measured.
        share: of that, what a step of a whole run takes, in (0, 1]: less where pictures are small first.
    """

    overhead: float
    forward: float
    step: float | None = None
    share: float = 1.0

    @classmethod
    def of_first_rung(cls, seconds: float, pictures: int) -> Pace:
        """Return what the first rung shows, which reads every training and val picture: all of it is taken for that."""
        return cls(overhead=0.0, forward=seconds / pictures)

    def scoring(self, pictures: int) -> float:
        """Return the seconds to score so many pictures once, and to write what came out."""
        return SAFETY * (self.overhead + pictures * self.forward)

    def training(self, num_steps: int, *, pictures_per_step: int, num_scored: int) -> float:
        """Return the seconds of a training run.

        Args:
            num_steps: optimizer steps.
            pictures_per_step: the global batch.
            num_scored: pictures scored over the whole run.
        """
        step = self.step or _FORWARDS_PER_STEP * self.forward * pictures_per_step
        return SAFETY * (self.overhead + num_steps * self.share * step + num_scored * self.forward)


def longest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number of steps up to `most` that fits, 0 where not even one does.

    Args:
        fits: whether so many steps fit; more never fit where fewer do not.
        most: where to stop.
    """
    low, high = 0, most
    while low < high:
        middle = math.ceil((low + high) / 2)
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def pilot_splits(splits: Splits) -> Splits:
    """Return splits with all training pictures and a few to score, for a probe that costs seconds."""
    if splits.val is None:
        raise AssertionError("a budget is refused without a val split")
    count = min(_PILOT_PICTURES, len(splits.val))
    few = ImageSet(splits.val.store.take(np.arange(count)), splits.val.labels[:count])
    return Splits(train=splits.train, val=few, test=None, class_names=splits.class_names)


def read_pilot(run_dir: Path, *, seconds: float, num_val: int, train: TrainConfig) -> Pace:
    """Return the pace that a finished probe shows.

    Scoring a few pictures is mostly its start (worker processes, a GPU's first kernels). So a picture is taken for no
    more than its share of a training step, which does more; the rest is overhead.

    Args:
        run_dir: of the probe.
        seconds: that it took as a whole.
        num_val: pictures that it scored each time: at its last step, and as its result.
        train: the section of the run under a budget: its global batch, and how long its pictures are small.
    """
    rows = Journal(run_dir / "timing.jsonl").rows()
    steps = [row["seconds"] for row in rows if "seconds" in row]
    scored = [row["evaluation_seconds"] for row in rows if "evaluation_seconds" in row]
    starts = [size["first_step"] for size in json.loads((run_dir / PLAN_FILE).read_text(encoding="utf-8"))["sizes"]]
    *small, full = (steps[start:end] for start, end in pairwise([*(starts or [0]), len(steps)]))
    step = median(full[1:] or full)  # the first step makes buffers, and is of no other step's length
    small_step = mean(map(min, small)) if small else step
    share = 1 - train.progressive_until + train.progressive_until * small_step / step
    forward = min(sum(scored) / max(1, num_val * len(scored)), step / train.global_batch_size)
    overhead = max(0.0, seconds - sum(steps) - 2 * num_val * forward)
    return Pace(overhead=overhead, forward=forward, step=step, share=min(1.0, share))
