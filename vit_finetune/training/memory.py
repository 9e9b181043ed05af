"""The largest micro-batch that fits into memory, found before the first step at a constant global batch.

On a GPU by trial; on a CPU, where running out of memory ends the process, by measuring it and a limit. Not here: what
happens when memory runs out later (micro_batches.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.common.machine import peak_memory_bytes
from vit_finetune.training.micro_batches import HELP, free_memory, halved, is_out_of_memory, with_micro_batch
from vit_finetune.training.plan import TrainPlan
from vit_finetune.training.processes import gathered_lists

if TYPE_CHECKING:
    from accelerate import Accelerator

# A later pass takes more than the first of its size: the allocator does not use again all that was let go.
_SHARE_OF_ROOM = 0.8
_SECONDS_BETWEEN_LOOKS = 0.001


def find_micro_batch(
    model: nn.Module,
    plan: TrainPlan,
    *,
    accelerator: Accelerator,
    image_size: tuple[int, int, int],
    max_memory: int | None,
    least: int = 1,
    states_per_parameter: int = 2,
) -> TrainPlan:
    """Return the plan with the largest micro-batch that fits, the same on every process.

    On a GPU the process's whole share of a step is tried first, then halves of it, each by one forward and backward
    pass beside the memory that the optimizer will take; `max_memory` is held by torch's allocator. On a CPU, where
    more pictures at once gain nothing, sizes are doubled up to the plan's own as long as the measured memory of the
    process stays below `max_memory`.

    Args:
        model: the bare network, moved to the accelerator's device; its gradients are cleared.
        plan: with the largest size to try.
        accelerator: gives device and precision.
        image_size: channels, height and width of a picture.
        max_memory: bytes for this process, or None: all of a GPU, no limit on a CPU.
        least: the fewest pictures there can be at once: 2 where pairs are mixed.
        states_per_parameter: tensors kept beside each trained one: 2 for Adam, one more for an average.

    Raises:
        RequestError: not even the fewest pictures fit.
    """
    model.to(accelerator.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = sum(parameter.numel() * parameter.element_size() for parameter in trained) * states_per_parameter

    def attempt(size: int) -> None:
        images = torch.zeros(size, *image_size, device=accelerator.device)
        with accelerator.autocast():
            logits = model(images, sample_seeds=torch.zeros(size, dtype=torch.int64, device=accelerator.device))
        logits.float().sum().backward()

    was_training = model.training
    model.train()
    try:
        if accelerator.device.type == "cuda":
            found = _largest_on_gpu(plan.per_device_batch_size, attempt, held, max_memory)
        elif max_memory is not None:
            found = _largest_in_process(plan.per_device_batch_size, attempt, held, max_memory)
        else:
            found = plan.per_device_batch_size
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        free_memory()
    size = min(gathered_lists(accelerator, [found]))
    if size < least:
        limit = "the memory there is" if max_memory is None else f"train.max_memory ({max_memory:,} bytes)"
        what = "one picture" if least == 1 else f"{least} pictures, which stay together,"
        raise RequestError(f"{what} at a time does not fit into {limit}; " + HELP)
    return with_micro_batch(plan, size)


def _largest_on_gpu(largest: int, attempt: Callable[[int], None], held: int, max_memory: int | None) -> int:
    """Return the first of `largest` and its halves that fits, or 0."""
    if max_memory is not None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max_memory / total))
    return largest_by_halving(largest, lambda size: fits(attempt, size, held=held, device="cuda"))


def fits(attempt: Callable[[int], None], size: int, *, held: int, device: str) -> bool:
    """Say whether a pass over `size` pictures fits beside `held` bytes that the optimizer will take.

    Args:
        attempt: a forward and backward pass over so many pictures.
        size: how many.
        held: bytes.
        device: cuda, or cpu.
    """
    free_memory()
    try:
        beside = torch.empty(held, dtype=torch.uint8, device=device)
        attempt(size)
        del beside
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def largest_by_halving(largest: int, fits: Callable[[int], bool]) -> int:
    """Return the first of `largest`, its half, and so on down to 1 that fits; 0 where none does."""
    size = largest
    while not fits(size):
        if size == 1:
            return 0
        size = halved(size)
    return size


def largest_by_doubling(largest: int, measure: Callable[[int], int], room: int) -> int:
    """Return the last of 1, 2, 4, ..., `largest` whose memory stays within `room`; 0 where one picture's does not.

    A size is tried only if twice the memory of half of it would fit, so that the limit is not broken to find it.

    Args:
        largest: the size to stop at.
        measure: bytes that a pass over so many pictures takes.
        room: bytes that there are.
    """
    size, used = 1, measure(1)
    if used > room:
        return 0
    while size < largest:
        larger = min(2 * size, largest)
        if used * larger > room * size:
            break
        used = measure(larger)
        if used > room:
            break
        size = larger
    return size


def _largest_in_process(largest: int, attempt: Callable[[int], None], held: int, max_memory: int) -> int:
    """Return the largest size at which the memory of this process stays below the limit, or 0."""
    import psutil  # comes with accelerate

    process = psutil.Process()
    attempt(1)  # makes the gradients, which stay, and whatever torch sets up at its first pass
    base = process.memory_info().rss

    def measure(size: int) -> int:
        highest = peak_memory_bytes() or 0
        with _watched(lambda: int(process.memory_info().rss)) as peak:
            attempt(size)
        now = peak_memory_bytes() or 0
        # A new record is exact; a pass that sets none is watched, and what the watcher misses is below the old one.
        return int(max((now if now > highest else peak[0]) - base, 0))

    return largest_by_doubling(largest, measure, int(_SHARE_OF_ROOM * (max_memory - held - base)))


@contextmanager
def _watched(look: Callable[[], int]) -> Iterator[list[int]]:
    """Yield a list of one number: the largest that `look` returned while the block ran."""
    peak, over = [look()], threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            peak[0] = max(peak[0], look())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak[0] = max(peak[0], look())
