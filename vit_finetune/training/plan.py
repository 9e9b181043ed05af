"""Every number of a run that follows from its configuration, computed once.

`TrainPlan` is frozen, logged at the start and written to `plan.json`. It holds no state: the learning
rate is a pure function of the step, and so are the steps at which the run evaluates and saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.training.stages import PictureSize, Stage

# Pictures that one process takes at once where the recipe says auto: what keeps the processor busy without
# holding more activations than needed. On CUDA the largest number that fits is found, but not for a sharded network,
# of which no process can try a pass alone.
_AUTO_BATCH = {"cpu": 16, "mps": 32, "fsdp": 32}
# Small pictures are taken in larger numbers on a CPU, in powers of two up to so many tokens: matrix products of a few
# hundred rows waste a processor that multiplies bf16 (benchmarks/cpu_settings.py).
_CPU_TOKENS = 2048
_CPU_MOST = 64


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """The derived numbers of a run.

    Attributes:
        num_train: training pictures.
        num_val: pictures of the val split, 0 without one.
        num_classes: classes of the head.
        num_steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warm-up.
        schedule: cosine, linear or constant.
        lr: peak learning rate.
        global_batch_size: pictures per step over all processes.
        per_device_batch_size: pictures one process takes at once.
        gradient_accumulation_steps: micro-batches per step of the process that has most.
        evaluate_every: steps between evaluations.
        save_every: steps between checkpoints, or None for one at every evaluation.
        num_processes: processes that share a step.
        mixed_precision: no, bf16 or fp16.
        seed: of the run.
        metric: of the val split, for the best checkpoint.
        stages: what trains from which step on.
        probe_steps: of lp_ft, steps of its first stage; 0 without one.
        probe_lr: peak learning rate of those; None takes `lr`.
        sizes: of the training pictures, from which step on; empty where they have the network's size all along.
    """

    num_train: int
    num_val: int
    num_classes: int
    num_steps: int
    warmup_steps: int
    schedule: str
    lr: float
    global_batch_size: int
    per_device_batch_size: int
    gradient_accumulation_steps: int
    evaluate_every: int
    save_every: int | None
    num_processes: int
    mixed_precision: str
    seed: int
    metric: str = "accuracy"
    stages: tuple[Stage, ...] = (Stage(),)
    probe_steps: int = 0
    probe_lr: float | None = None
    sizes: tuple[PictureSize, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a warm-up that does not fit.

        Raises:
            RequestError: the warm-up is longer than the run, or than what a linear probe leaves of it.
        """
        left = self.num_steps - self.probe_steps
        if self.warmup_steps > left:
            what = f"the run of {left}" if not self.probe_steps else f"the {left} steps that the linear probe leaves"
            raise RequestError(
                f"the warm-up of {self.warmup_steps} steps is longer than {what}; "
                "lower schedule.warmup_steps or schedule.warmup_epochs, or train for longer"
            )

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the update that comes after `step` done steps.

        The linear probe of lp_ft and the fine-tuning after it have a schedule each, the probe's without a warm-up;
        gradual has one for the whole run, which parts join where it stands.

        Args:
            step: steps done, from 0.

        Returns:
            The peak rate x (step + 1) / warmup_steps while warming up, then the schedule;
            cosine and linear reach 0 at `num_steps`.
        """
        if step < self.probe_steps:
            return self.peak_lr_at(step) * self._decay(step / self.probe_steps)
        step, last = step - self.probe_steps, self.num_steps - self.probe_steps
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return self.lr * self._decay((step - self.warmup_steps) / max(1, last - self.warmup_steps))

    def peak_lr_at(self, step: int) -> float:
        """Return the rate that the schedule at `step` done steps starts from."""
        return self.probe_lr if step < self.probe_steps and self.probe_lr is not None else self.lr

    def _decay(self, progress: float) -> float:
        """Return what the schedule leaves of the peak rate, at a progress between 0 and 1."""
        if self.schedule == "constant":
            return 1.0
        return 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))

    @property
    def probe_end(self) -> int:
        """Steps done when the head alone has trained and more begins to; 0 for a run of one stage."""
        return self.stages[1].first_step if len(self.stages) > 1 else 0

    def stage_at(self, step: int) -> Stage:
        """Return the stage of the update that comes after `step` done steps; after the last step, the last stage."""
        return [stage for stage in self.stages if stage.first_step <= step][-1]

    def end_of(self, stage: Stage) -> int:
        """Return the steps done when a stage is over."""
        later = [other.first_step for other in self.stages if other.first_step > stage.first_step]
        return min(later, default=self.num_steps)

    def size_at(self, step: int) -> tuple[int, int] | None:
        """Return height and width of the pictures of the update after `step` done steps; None: the network's."""
        begun = [size for size in self.sizes if size.first_step <= step]
        return (begun[-1].height, begun[-1].width) if begun else None

    def stretches(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts [from, to) of the steps [first, end) whose pictures have one size each."""
        inside = (size.first_step for size in self.sizes if first < size.first_step < end)
        yield from pairwise([first, *inside, end])

    def growth_after(self, step: int) -> float:
        """Return by what share a later step has more pixels, at the most, than the one that made `step` done steps."""
        if not self.sizes:
            return 0.0
        height, width = self.size_at(step - 1) or (1, 1)
        return max(size.height * size.width for size in self.sizes) / (height * width) - 1

    def evaluates_at(self, step: int) -> bool:
        """Say whether the val split is scored after `step` done steps; the last step always is."""
        return step == self.num_steps or step % self.evaluate_every == 0

    def saves_at(self, step: int) -> bool:
        """Say whether a checkpoint is due after `step` done steps; the last step always is one."""
        return step == self.num_steps or step % (self.save_every or self.evaluate_every) == 0

    def epoch_at(self, step: int) -> float:
        """Return the pictures seen after `step` done steps over `num_train`."""
        return step * self.global_batch_size / self.num_train

    def to_mapping(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values."""
        stages, sizes = ([asdict(part) for part in found] for found in (self.stages, self.sizes))
        return {**asdict(self), "stages": stages, "sizes": sizes}


def steps_in(epochs: float, *, num_train: int, global_batch_size: int, least: int = 1) -> int:
    """Return ceil(epochs x num_train / global_batch_size), at least `least`.

    Args:
        epochs: passes over the training pictures; may be a fraction.
        num_train: training pictures.
        global_batch_size: pictures per step over all processes.
        least: the smallest answer.
    """
    steps = epochs * num_train / global_batch_size
    return max(least, math.ceil(round(steps, 9)))  # forgives the rounding error of a product such as 0.07 x 100


def largest_share(global_batch_size: int, num_processes: int, *, in_pairs: bool = False) -> int:
    """Return how many pictures of a step the process with most of them gets; `in_pairs` never parts neighbours."""
    unit = 2 if in_pairs else 1
    return unit * math.ceil(global_batch_size / (unit * num_processes))


def check_shares(global_batch_size: int, num_processes: int, *, in_pairs: bool) -> None:
    """Refuse a global batch that leaves a process without a picture, or without a pair where pairs are mixed."""
    least = num_processes * (2 if in_pairs else 1)
    if global_batch_size < least:
        what = "a pair to mix" if in_pairs else "a picture"
        raise RequestError(
            f"train.global_batch_size {global_batch_size} leaves some of {num_processes} processes without {what}; "
            f"give at least {least}, or use at most {global_batch_size // (2 if in_pairs else 1)} process(es)"
        )


def micro_batch(
    wanted: int | str,
    *,
    global_batch_size: int,
    num_processes: int,
    device_kind: str,
    num_tokens: int,
    in_pairs: bool = False,
) -> int:
    """Return how many pictures a process takes at once.

    Args:
        wanted: a number, or "auto".
        global_batch_size: pictures per step over all processes.
        num_processes: processes that share a step.
        device_kind: cpu, cuda or mps; fsdp for a network in shards.
        num_tokens: of a picture.
        in_pairs: neighbours are mixed and stay together; the global batch is even.

    Returns:
        The number, for "auto" the largest to try; the rest of a process's share is accumulated.

    Raises:
        RequestError: a process would have no picture, or fewer than it is told to take at once.
    """
    check_shares(global_batch_size, num_processes, in_pairs=in_pairs)
    share = largest_share(global_batch_size, num_processes, in_pairs=in_pairs)
    if isinstance(wanted, str):
        most = _AUTO_BATCH.get(device_kind, share)
        while device_kind == "cpu" and most < _CPU_MOST and 2 * most * num_tokens <= _CPU_TOKENS:
            most *= 2
        return min(share, most)
    if wanted > share:
        raise RequestError(
            f"train.per_device_batch_size is {wanted}, but each of {num_processes} processes gets {share} pictures of "
            f"train.global_batch_size {global_batch_size}; give at most {share}, or auto"
        )
    return wanted
