"""How fast this machine is with this network and these pictures, and what a rung will take.

Seconds are measured on a few batches, never assumed: a probe of three training steps is a run like any other, so that
decoding, optimizer, processes and checkpoints are all in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vit_finetune.data import ImageSet, Splits
from vit_finetune.training.journal import Journal

PILOT_STEPS = 4
_PILOT_PICTURES = 32
# Steps are not equally long, other work runs on the machine, and a cut rung is worth nothing: this much is kept back.
SAFETY = 1.15
# A backward pass costs two forward passes; before steps are measured, a step is taken to cost at least this.
_FORWARDS_PER_STEP = 3.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Measured seconds.

    Attributes:
        overhead: of a run beside its steps and its scoring: opening data and weights, writing the model.
        forward: per picture that is scored.
        step: per optimizer step of the whole network; None before it was measured.
    """

    overhead: float
    forward: float
    step: float | None = None

    def scoring(self, pictures: int) -> float:
        """Return the seconds to score so many pictures once, and to write what came out."""
        return self.overhead + pictures * self.forward

    def training(self, num_steps: int, *, pictures_per_step: int, num_scored: int) -> float:
        """Return the seconds of a training run.

        Args:
            num_steps: optimizer steps.
            pictures_per_step: the global batch.
            num_scored: pictures scored over the whole run.
        """
        step = self.step or _FORWARDS_PER_STEP * self.forward * pictures_per_step
        return SAFETY * (self.overhead + num_steps * step + num_scored * self.forward)


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
    some = range(min(_PILOT_PICTURES, len(splits.val)))
    few = ImageSet(splits.val.store.take(_array(some)), splits.val.labels[: len(some)])
    return Splits(train=splits.train, val=few, test=None, class_names=splits.class_names)


def _array(places: range) -> Any:
    import numpy as np

    return np.arange(places.start, places.stop, dtype=np.int64)


def read_pilot(run_dir: Path, *, seconds: float, num_val: int) -> Pace:
    """Return the pace that a finished probe shows.

    Args:
        run_dir: of the probe.
        seconds: that it took as a whole.
        num_val: pictures that it scored each time: at its last step, and as its result.
    """
    rows: list[Mapping[str, Any]] = Journal(run_dir / "timing.jsonl").rows()
    steps = [row["seconds"] for row in rows if "seconds" in row]
    scored = [row["evaluation_seconds"] for row in rows if "evaluation_seconds" in row]
    step = median(steps[1:] or steps)  # the first step makes buffers, and is of no other step's length
    forward = sum(scored) / max(1, num_val * len(scored))
    overhead = max(0.0, seconds - sum(steps) - 2 * sum(scored))
    return Pace(overhead=overhead, forward=forward, step=step)
