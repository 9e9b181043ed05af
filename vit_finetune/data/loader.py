"""Image sets -> batches, in worker processes or in this one, with the same result.

Which samples come when is order.py's; how each is augmented depends on (seed, epoch, index) alone, so neither the
number of workers (workers.py) nor that of ranks changes a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.machine import num_cores
from vit_finetune.data.batch import Batch
from vit_finetune.data.image_set import BlockStore, ImageSet
from vit_finetune.data.order import (
    Visits,
    balanced_order,
    block_order,
    eval_indices,
    global_batch,
    once,
    rank_part,
    visits,
)
from vit_finetune.data.transforms import Transform
from vit_finetune.data.workers import Request, Result, Worker, run_workers

_MAX_WORKERS = 8


def train_batches(
    image_set: ImageSet,
    transform: Transform,
    *,
    seed: int,
    global_batch_size: int,
    per_device_batch_size: int,
    start_step: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    balanced: bool = False,
    in_pairs: bool = False,
    skip_bad: bool = False,
    make_worker: Callable[..., Worker] = Worker,
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of each training step.

    Args:
        image_set: the training split.
        transform: the training transform.
        seed: the seed of the run: decides order, augmentation and `sample_seeds`.
        global_batch_size: samples per step over all ranks, at least `world_size`.
        per_device_batch_size: the largest micro-batch.
        start_step: the first step to yield, from 0; a resumed run gives the number of steps done.
        num_steps: how many steps to yield.
        rank: which process this is, from 0.
        world_size: how many processes there are.
        num_workers: processes that decode beside this one; 0 decodes here. Does not change the result.
        pin_memory: hand over page-locked memory, for faster copies to a GPU.
        balanced: visit every class equally often (`order.balanced_order`) instead of every sample once an epoch.
        in_pairs: never part the samples 2i and 2i + 1 of a global batch; both sizes are even.
        skip_bad: leave out a picture that cannot be read, and in pairs its neighbour for that step, instead of raising;
            `Batch.bad` names it. No other picture takes its place.
        make_worker: makes what answers requests, with the arguments of `Worker`.

    Yields:
        For each step one or more batches. Their number may differ between ranks. A batch is empty only where all the
        rank's samples of the step are bad.

    Raises:
        RequestError: a size is impossible, or a picture cannot be read; the message names it.
    """
    _check_sizes(global_batch_size, per_device_batch_size, world_size, in_pairs=in_pairs)
    if not len(image_set):
        raise RequestError("the training split has no pictures")
    mine = rank_part(global_batch_size, rank, world_size, in_pairs=in_pairs)
    visits_of = _visits_of(image_set, seed, balanced=balanced)
    sizes = {"num_samples": len(image_set), "global_batch_size": global_batch_size}
    requests = (
        request
        for step in range(start_step, start_step + num_steps)
        for batch in [global_batch(step, seed=seed, visits_of=visits_of, **sizes)]
        for request in _requests(step, batch, mine, per_device_batch_size, image_set.weights)
    )
    worker = make_worker(image_set, transform, seed, skip_bad=skip_bad, in_pairs=in_pairs)
    return _steps(run_workers(worker, requests, num_workers, pin_memory=pin_memory))


def _requests(
    step: int,
    batch: tuple[NDArray[np.int64], NDArray[np.int64]],
    mine: slice,
    size: int,
    weights: NDArray[np.float64] | None,
) -> Iterator[Request]:
    """Cut a rank's part of a step into micro-batches."""
    epochs, indices = batch
    relative = None if weights is None else _relative(weights[indices])
    for start in range(mine.start, mine.stop, size):
        part = slice(start, min(start + size, mine.stop))
        own = None if relative is None else relative[part]
        yield Request(step, epochs[part], indices[part], start, part.stop == mine.stop, own)


def _relative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of a global batch with a mean of 1, so that a loss may be divided by the number of samples.

    Every rank knows the whole batch, so no rank has to ask the others; where all weigh 0, they stay 0.
    """
    mean = weights.mean()
    return weights / mean if mean > 0 else weights


def _visits_of(image_set: ImageSet, seed: int, *, balanced: bool) -> Callable[[int], Visits] | None:
    """Return the visits as a function of the epoch, made once for each; None for the plain order."""
    if balanced:
        labels = image_set.single_labels("a balanced order")
        return lru_cache(maxsize=2)(lambda epoch: visits(epoch, balanced_order(seed, epoch, labels)))
    if isinstance(image_set.store, BlockStore):
        blocks = image_set.store.blocks()
        return lru_cache(maxsize=2)(lambda epoch: once(epoch, block_order(seed, epoch, blocks)))
    return None


def _check_sizes(global_batch_size: int, per_device_batch_size: int, world_size: int, *, in_pairs: bool) -> None:
    """Refuse sizes of batches that some process could not take."""
    sizes = f"global_batch_size {global_batch_size} with per_device_batch_size {per_device_batch_size}"
    if in_pairs and (global_batch_size % 2 or per_device_batch_size % 2):
        raise RequestError(f"{sizes}: both must be even where neighbours are mixed")
    if per_device_batch_size < 1 or global_batch_size < world_size * (1 + in_pairs):
        needed = "a pair of samples" if in_pairs else "at least one sample"
        raise RequestError(f"{sizes}: every one of {world_size} processes needs {needed} per step")


def eval_batches(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    skip_bad: bool = False,
    make_worker: Callable[..., Worker] = Worker,
) -> Iterator[Batch]:
    """Yield this rank's share of an image set, in order, every sample once over all ranks.

    Args:
        image_set: what to evaluate.
        transform: the evaluation transform, plain or corrupted; or a training transform, for one view of each sample.
        batch_size: the largest batch.
        seed: what a random transform draws from, with `epoch` and the sample's index, as in training.
        epoch: which view.
        rank: which process this is, from 0.
        world_size: how many processes there are.
        num_workers: processes that decode beside this one; 0 decodes here. Does not change the result.
        pin_memory: hand over page-locked memory, for faster copies to a GPU.
        skip_bad: leave out a picture that cannot be read instead of raising; `Batch.bad` names it.
        make_worker: makes what answers requests, with the arguments of `Worker`.

    Yields:
        Batches, empty where all their samples are bad; none where there are more ranks than samples and this rank has
        no share.

    Raises:
        RequestError: a picture cannot be read; the message names it.
    """
    if batch_size < 1:
        raise RequestError(f"batch_size is {batch_size}; it must be at least 1")
    indices = np.array(eval_indices(len(image_set), rank, world_size), dtype=np.int64)
    requests = (
        Request(0, np.full_like(part, epoch), part, start, is_last=True)
        for start in range(0, len(indices), batch_size)
        for part in [indices[start : start + batch_size]]
    )
    worker = make_worker(image_set, transform, seed, skip_bad=skip_bad)
    results = run_workers(worker, requests, num_workers, pin_memory=pin_memory)
    return (result.batch for result in results)


def default_num_workers(device_kind: str, world_size: int) -> int:
    """Return a sane number of worker processes for each rank.

    Args:
        device_kind: "cpu", "cuda", ...: on a CPU the model needs the cores, so decoding stays in its process.
        world_size: how many ranks share this machine.

    Returns:
        0 on a CPU; else this rank's share of the cores that the process may use, from 1 to 8.
    """
    if device_kind == "cpu":
        return 0
    return min(_MAX_WORKERS, max(1, num_cores() // world_size))


def _steps(results: Iterator[Result]) -> Iterator[list[Batch]]:
    """Gather micro-batches into steps, without empty ones unless there is nothing else."""
    step: list[Batch] = []
    for result in results:
        step.append(result.batch)
        if result.is_last:
            filled = [batch for batch in step if len(batch)] or step[:1]
            lost = tuple(bad for batch in step if all(batch is not kept for kept in filled) for bad in batch.bad)
            filled[0] = replace(filled[0], bad=filled[0].bad + lost)
            yield filled
            step = []
