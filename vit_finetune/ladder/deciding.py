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
# What a readout of its network takes stays left all the same: after few epochs that is worth more than the steps.
_LEAST_EPOCHS_OF_A_SHARE = 2
_MOST_BEHIND = 0.02  # of the metric: what averages of such networks gain is a point, rarely two
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
        took: seconds of each rung that was climbed, by name.
        behind: by how much of the metric the best network is behind the best rung.
    """

    elapsed: float
    left: float
    pace: Pace | None
    num_train: int
    num_val: int
    pictures_per_step: int
    networks: Mapping[str, int]
    took: Mapping[str, float]
    behind: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every training picture once."""
        return math.ceil(self.num_train / self.pictures_per_step)

    def training_seconds(self, num_steps: int) -> float:
        """Return what a training run of so many steps takes: val is scored at its last step, and for its figures."""
        if self.pace is None:
            raise AssertionError("the first rung is not predicted")
        return self.pace.training(num_steps, pictures_per_step=self.pictures_per_step, num_scored=2 * self.num_val)

    def readout_seconds(self, like: tuple[str, float] | None) -> float:
        """Return what a readout of a tuned network takes, with nothing kept back: its pictures are read once more.

        Args:
            like: an earlier readout, and how many times its seconds.

        Returns:
            The seconds; 0 where they are not known.
        """
        if like is None or like[0] not in self.took or self.pace is None:
            return 0.0
        read = self.pace.overhead + (self.num_train + self.num_val) * self.pace.forward
        return like[1] * self.took[like[0]] + read


def decide(rung: Rung, now: Situation) -> Decision:
    """Return whether a rung fits, and with how many steps."""
    if now.pace is None:
        reason = "the first rung always runs, so that there is a model"
        return Decision(rung=rung.name, decision=RUN, reason=reason, elapsed_seconds=now.elapsed)
    if rung.kind == READOUT:
        return _decide_readout(rung, now)
    if rung.kind == BLEND:
        return _decide_blend(rung, now, now.pace)
    return _decide_training(rung, now)


def _decide_readout(rung: Rung, now: Situation) -> Decision:
    """A readout takes what an earlier one took, times a factor; a network of its own is read once more."""
    earlier, factor = rung.like or ("", 1.0)
    start = next((name for name in rung.start if name in now.networks), None)
    if rung.start and start is None:
        return _skip(rung, now, f"there is no network of {' or '.join(rung.start)}")
    if earlier not in now.took:
        return _skip(rung, now, f"how long it takes is known from {earlier}, which was left out")
    # For that of a tuned network fine-tuning left room, with a margin that is there to be used up.
    seconds = SAFETY * factor * now.took[earlier] if start is None else now.readout_seconds((earlier, factor))
    return _if_it_fits(rung, now, seconds, start=start)


def _skip(rung: Rung, now: Situation, reason: str, seconds: float | None = None) -> Decision:
    return Decision(
        rung=rung.name,
        decision=SKIP,
        reason=reason,
        predicted_seconds=None if seconds is None else round(seconds, 3),
        elapsed_seconds=now.elapsed,
    )


def _if_it_fits(rung: Rung, now: Situation, seconds: float, *, start: str | None = None) -> Decision:
    takes, left = duration_text(seconds), duration_text(max(0.0, now.left))
    if seconds > now.left:
        return _skip(rung, now, f"takes about {takes}, {left} left", seconds)
    return Decision(
        rung=rung.name,
        decision=RUN,
        starts_from=start,
        reason=f"takes about {takes} of {left} left",
        predicted_seconds=round(seconds, 3),
        elapsed_seconds=now.elapsed,
    )


def _decide_blend(rung: Rung, now: Situation, pace: Pace) -> Decision:
    if not any(now.networks.get(name) for name in rung.start):
        return _skip(rung, now, "nothing was trained that could be averaged")
    if now.behind > _MOST_BEHIND:
        return _skip(rung, now, f"the best of them is {now.behind:.3f} behind, more than averages make up")
    return _if_it_fits(rung, now, pace.scoring(MOST_BLENDS * now.num_val))


def _decide_training(rung: Rung, now: Situation) -> Decision:
    most = rung.epochs * now.steps_per_epoch
    least = min(now.steps_per_epoch, _LEAST_STEPS)
    steps = longest(lambda count: now.training_seconds(count) <= rung.share * now.left, most)
    if steps < min(most, _LEAST_EPOCHS_OF_A_SHARE * now.steps_per_epoch):
        room = now.left - SAFETY * now.readout_seconds(rung.read_like)
        steps = longest(lambda count: now.training_seconds(count) <= room, most)
        if steps < least and room < now.left:  # without a readout it must learn more to be worth its time
            steps, least = longest(lambda count: now.training_seconds(count) <= now.left, most), 2 * least
    left = duration_text(max(0.0, now.left))
    if steps < least:
        seconds = now.training_seconds(least)
        return _skip(rung, now, f"{least} steps take about {duration_text(seconds)}, {left} left", seconds)
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
