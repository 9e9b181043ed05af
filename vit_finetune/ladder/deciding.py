"""Whether a rung is climbed, and how far: pure functions of what was measured and what is left of the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vit_finetune.common.durations import duration_text
from vit_finetune.ladder.decisions import RUN, SKIP, Decision
from vit_finetune.ladder.pace import SAFETY, Pace, longest
from vit_finetune.ladder.rungs import BLEND, READOUT, Rung

# Fewer steps than this leave a network where it was, with its first moments unsettled.
_LEAST_STEPS = 50
# Where a rung's share of the time is less than so many epochs, it takes all that is left: two half runs are no run.
_LEAST_EPOCHS_OF_A_SHARE = 2
MOST_BLENDS = 9  # each of two trained, their mean, three shares and the end of the line, the chosen one again


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a decision rests on.

    Attributes:
        elapsed: seconds of the budget that are gone.
        left: seconds that are left when the end (scoring and writing) is taken off.
        pace: what was measured; None before the first rung.
        num_train: training pictures.
        num_val: pictures of the val split.
        pictures_per_step: the global batch.
        networks: rungs whose model is a plain network, and the steps that it was trained for.
    """

    elapsed: float
    left: float
    pace: Pace | None
    num_train: int
    num_val: int
    pictures_per_step: int
    networks: Mapping[str, int]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every training picture once."""
        return math.ceil(self.num_train / self.pictures_per_step)

    def training_seconds(self, num_steps: int) -> float:
        """Return what a training run of so many steps takes: val is scored at its last step, and for its figures."""
        if self.pace is None:
            raise AssertionError("the first rung is not predicted")
        return self.pace.training(num_steps, pictures_per_step=self.pictures_per_step, num_scored=2 * self.num_val)


def decide(rung: Rung, now: Situation) -> Decision:
    """Return whether a rung fits, and with how many steps."""
    if now.pace is None:
        reason = "the first rung always runs, so that there is a model"
        return Decision(rung=rung.name, decision=RUN, reason=reason, elapsed_seconds=now.elapsed)
    if rung.kind == READOUT:
        return _if_it_fits(rung, now, SAFETY * rung.passes * now.pace.first)
    if rung.kind == BLEND:
        return _decide_blend(rung, now, now.pace)
    return _decide_training(rung, now)


def _if_it_fits(rung: Rung, now: Situation, seconds: float, why_not: str = "") -> Decision:
    takes, left = duration_text(seconds), duration_text(max(0.0, now.left))
    fits = seconds <= now.left and not why_not
    return Decision(
        rung=rung.name,
        decision=RUN if fits else SKIP,
        reason=why_not or (f"takes about {takes} of {left} left" if fits else f"takes about {takes}, {left} left"),
        predicted_seconds=round(seconds, 3),
        elapsed_seconds=now.elapsed,
    )


def _decide_blend(rung: Rung, now: Situation, pace: Pace) -> Decision:
    trained = [name for name in rung.start if now.networks.get(name)]
    seconds = SAFETY * (pace.overhead + MOST_BLENDS * now.num_val * pace.forward)
    return _if_it_fits(rung, now, seconds, "" if trained else "nothing was trained that could be averaged")


def _decide_training(rung: Rung, now: Situation) -> Decision:
    most = rung.epochs * now.steps_per_epoch
    least = min(now.steps_per_epoch, _LEAST_STEPS)
    steps = longest(lambda count: now.training_seconds(count) <= rung.share * now.left, most)
    if steps < min(most, _LEAST_EPOCHS_OF_A_SHARE * now.steps_per_epoch):
        steps = longest(lambda count: now.training_seconds(count) <= now.left, most)
    left = duration_text(max(0.0, now.left))
    if steps < least:
        seconds = now.training_seconds(least)
        reason = f"{least} steps take about {duration_text(seconds)}, {left} left"
        return Decision(
            rung=rung.name,
            decision=SKIP,
            reason=reason,
            predicted_seconds=round(seconds, 3),
            elapsed_seconds=now.elapsed,
        )
    seconds = now.training_seconds(steps)
    epochs = steps * now.pictures_per_step / now.num_train
    return Decision(
        rung=rung.name,
        decision=RUN,
        num_steps=steps,
        starts_from=next((name for name in rung.start if name in now.networks), None),
        reason=f"{steps} steps ({epochs:.1f} epochs) take about {duration_text(seconds)} of {left} left",
        predicted_seconds=round(seconds, 3),
        elapsed_seconds=now.elapsed,
    )
