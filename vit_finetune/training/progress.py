"""Where a run stands, and what `fit` is told besides the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, the best evaluation so far, fp16 steps skipped in a row."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    skipped_in_a_row: int = 0


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What `fit` is told besides the plan.

    Attributes:
        label_smoothing: in [0, 1).
        max_grad_norm: global norm of the gradient, or None.
        metric: of the val split, for the best checkpoint.
        keep_last: newest checkpoints to keep.
        every_minutes: save, too, after so many minutes, or None.
        log_every_steps: training rows are written every so many steps.
        settings: plain values stored with each checkpoint and compared at resume.
        keep_pairs: neighbours 2i and 2i + 1 of a batch are never parted, as mixing needs it.
        name_sample: a name for the training picture of an index, for messages.
        count_images: the pictures in a step over all processes, from this one's micro-batches; None where none is ever
            left out, so that the global batch is always full.
    """

    label_smoothing: float
    max_grad_norm: float | None
    metric: str
    keep_last: int
    every_minutes: float | None
    log_every_steps: int
    settings: Mapping[str, object]
    keep_pairs: bool = False
    name_sample: Callable[[int], str]
    count_images: Callable[[Sequence[Any]], int] | None = None
