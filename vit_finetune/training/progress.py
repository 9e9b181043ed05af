"""Where a run stands, and what `fit` is told besides the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vit_finetune.common.figures import is_better
from vit_finetune.training.objective import Objective

AVERAGE = "ema_"  # before the name of a figure: of the averaged weights


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: steps done.
        best_step: the step of the best evaluation so far.
        best_value: its figure.
        skipped_in_a_row: fp16 steps skipped up to now.
        best_is_average: whether the averaged weights of that step had that figure, not the raw ones.
        num_not_better: evaluations since the best, counted in the last stage.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    skipped_in_a_row: int = 0
    best_is_average: bool = False
    num_not_better: int = 0

    @classmethod
    def of_state(cls, step: int, state: Mapping[str, Any]) -> Progress:
        """Return what `to_state` gave, at a step."""
        return cls(step=step, **{name: state.get(name, default) for name, default in cls().to_state().items()})

    def to_state(self) -> dict[str, Any]:
        """Return everything but the step as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "step"}

    def compared(self, metric: str, value: float, average: float | None, *, counts: bool) -> Progress:
        """Return where the run stands once its step was scored; a tie does not beat what was there before.

        Args:
            metric: what is compared.
            value: of the raw weights.
            average: of the averaged weights, or None where there are none.
            counts: count the evaluations without a better figure.
        """
        found = self
        for figure, is_average in ((value, False), (average, True)):
            if figure is not None and is_better(metric, figure, found.best_value):
                found = replace(found, best_step=self.step, best_value=figure, best_is_average=is_average)
        worse = found is self
        return replace(found, num_not_better=self.num_not_better + 1 if worse and counts else 0)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What `fit` is told besides the plan.

    Attributes:
        objective: what is minimised.
        max_grad_norm: global norm of the gradient, or None.
        metric: of the val split, for the best checkpoint.
        patience: evaluations of the last stage without a better figure after which the run ends; None never ends it.
        keep_last: newest checkpoints to keep.
        asynchronous: write checkpoints while training goes on.
        every_minutes: save, too, after so many minutes, or None.
        log_every_steps: training rows are written every so many steps.
        settings: plain values stored with each checkpoint.
        name_sample: a name for the training picture of an index, for messages.
        count_images: what the loss of a step is divided by, the pictures over all processes or the sum of their
            weights, from this one's micro-batches; None where none is ever left out, so that the global batch is full.
    """

    objective: Objective = field(default_factory=Objective)
    max_grad_norm: float | None
    metric: str
    patience: int | None = None
    keep_last: int
    asynchronous: bool = False
    every_minutes: float | None
    log_every_steps: int
    settings: Mapping[str, object]
    name_sample: Callable[[int], str]
    count_images: Callable[[Sequence[Any]], float] | None = None
