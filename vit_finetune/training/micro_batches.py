"""How many pictures go through the network at once, halved where memory runs out in the middle of a run.

The global batch never changes: a smaller micro-batch only means more of them per step, with the same gradient. What it
came to stands in the run's plan.json, and a resumed run takes it from there. Finding it at the start is memory.py's.

Processes that share a step must agree. So after a start or a halving the step is rehearsed without synchronising, and
all halve where one did not fit; only then it is done. Later steps have the same shapes, or are rehearsed again; if
memory still runs out there (another program took it), the other processes wait inside a reduction and cannot follow:
the run stops, with the smaller size written down, and goes on by `--resume`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import torch

from vit_finetune.common.errors import WorkError
from vit_finetune.common.files import write_json
from vit_finetune.training.plan import TrainPlan, largest_share
from vit_finetune.training.processes import gathered_lists

if TYPE_CHECKING:
    from accelerate import Accelerator

PLAN_FILE = "plan.json"
HELP = (
    "lower model.img_size, set train.grad_checkpointing=blocks, train fewer parameters (tuning.mode), or a smaller "
    "model"
)


class Rows(Protocol):
    """A batch that can be cut."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def part(self, rows: slice) -> Self:
        """Return some of its rows."""


B = TypeVar("B", bound=Rows)
T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on whatever device."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and should_reduce_batch_size(error)


def halved(size: int) -> int:
    """Return half a micro-batch: even as long as it can be, so that mixed pairs stay together."""
    return max(1, size // 4 * 2) if size > 2 else 1


def cut(batches: Sequence[B], size: int) -> list[B]:
    """Return the same samples in the same order, at most `size` at once; an empty batch stays, for the others wait."""
    return [
        batch if len(batch) <= size else batch.part(slice(start, start + size))
        for batch in batches
        for start in range(0, max(1, len(batch)), size)
    ]


def with_micro_batch(plan: TrainPlan, size: int) -> TrainPlan:
    """Return the same plan with `size` pictures at once; the rest of a step is accumulated."""
    steps = -(-plan.global_batch_size // (plan.num_processes * size))
    return replace(plan, per_device_batch_size=size, gradient_accumulation_steps=steps)


def remember_micro_batch(run_dir: Path, plan: TrainPlan) -> None:
    """Write the plan's micro-batch into plan.json; what else stands there stays."""
    path = run_dir / PLAN_FILE
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else plan.to_mapping()
    for name in ("per_device_batch_size", "gradient_accumulation_steps"):
        values[name] = getattr(plan, name)
    write_json(path, values)


def remembered_micro_batch(run_dir: Path) -> int | None:
    """Return the micro-batch that plan.json names, or None where there is no plan yet."""
    path = run_dir / PLAN_FILE
    if not path.is_file():
        return None
    return int(json.loads(path.read_text(encoding="utf-8"))["per_device_batch_size"])


@dataclass
class MicroBatches:
    """The size of the micro-batches of a run, and whether all processes have seen it fit.

    Attributes:
        plan: with the size as it is now.
        least: fewer than this are never taken at once: 2 where pairs are mixed, else 1.
        in_step: no process can do a pass without the others (the network is sharded), so all have equally many.
        proven: with several processes: a step has fitted at this size on every one of them.
    """

    plan: TrainPlan
    least: int = 1
    in_step: bool = False
    proven: bool = False

    def __post_init__(self) -> None:
        """Leave out the rehearsal of processes that go in step: a pass that fails in one of them halts the others."""
        self.proven = self.proven or self.in_step

    @property
    def size(self) -> int:
        """How many pictures a process takes at once."""
        return self.plan.per_device_batch_size

    def begin(self, step: int) -> None:
        """Let the processes prove anew that a step fits where its pictures have another size than those before it."""
        if self.plan.size_at(step) != self.plan.size_at(step - 1):
            self.proven = self.in_step

    def as_many(self, batches: Sequence[B]) -> Sequence[B]:
        """Return this process's micro-batches of a step; in step, as many as any process has, the last ones empty."""
        if not self.in_step:
            return batches
        plan = self.plan
        share = largest_share(plan.global_batch_size, plan.num_processes, in_pairs=self.least == 2)
        return [*batches, *[batches[-1].part(slice(0, 0))] * (-(-share // self.size) - len(batches))]

    def run(
        self,
        attempt: Callable[[int, bool], T],
        *,
        accelerator: Accelerator,
        run_dir: Path,
        forget: Callable[[], None],
        tell: Callable[[int], None],
    ) -> T:
        """Make the gradients of a step; where memory runs out, halve the micro-batch and start the step over.

        Args:
            attempt: makes them with at most so many pictures at once, synchronised over the processes or not.
            accelerator: of the run.
            run_dir: its plan.json is told.
            forget: puts the step back to where it began.
            tell: told the size that was too large.

        Returns:
            What the attempt that fitted returned.

        Raises:
            WorkError: there are no fewer pictures to take, or other processes cannot follow any more.
        """
        while True:
            is_rehearsal = accelerator.num_processes > 1 and not self.proven
            done, ran_out = self._try(attempt, synchronised=not is_rehearsal)
            if is_rehearsal:
                ran_out = any(gathered_lists(accelerator, [ran_out]))
            elif ran_out and accelerator.num_processes > 1:
                self._halve()
                remember_micro_batch(run_dir, self.plan)
                raise WorkError(
                    f"process {accelerator.process_index} ran out of memory while the others were waiting for its "
                    f"gradients; go on with --resume, which takes {self.size} pictures at once"
                )
            if done is not None and not ran_out and not is_rehearsal:
                return done[0]
            forget()
            self.proven = not ran_out
            if ran_out:
                too_large = self.size
                self._halve()
                free_memory()
                if accelerator.is_main_process:
                    remember_micro_batch(run_dir, self.plan)
                tell(too_large)

    def _try(self, attempt: Callable[[int, bool], T], *, synchronised: bool) -> tuple[tuple[T] | None, bool]:
        """Return what an attempt returned, or that it ran out of memory; its traceback, and so its tensors, go."""
        try:
            return (attempt(self.size, synchronised),), False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None, True

    def _halve(self) -> None:
        """Take half as many pictures at once from now on."""
        if self.size <= self.least:
            raise WorkError(f"out of memory with {self.size} picture(s) at once, the fewest there can be; {HELP}")
        self.plan = with_micro_batch(self.plan, max(self.least, halved(self.size)))


def free_memory() -> None:
    """Give back what the failed attempt left cached on the device."""
    gc.collect()  # the traceback's frames held the activations
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
