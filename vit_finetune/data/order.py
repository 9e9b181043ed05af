"""Which sample, in which batch, on which rank: pure functions of numbers.

The training stream is the endless concatenation of one permutation per epoch, cut into global
batches of one size: no epoch ends in a short batch, and step k can be computed without steps
before it. A balanced epoch draws from every class equally often instead. Evaluation cuts the samples into contiguous
shards, so every sample is counted once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.seeding import derive_seed

BLOCKS_TOGETHER = 8  # blocks whose samples are mixed; a process holds as many


@lru_cache(maxsize=2)  # a step touches two neighbouring epochs at the most, unless it is larger than one
def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the samples.

    Args:
        seed: the seed of the run.
        epoch: which epoch, from 0.
        num_samples: how many samples the training split has.

    Returns:
        [num_samples] a permutation of 0 ... num_samples - 1, read-only.

    Source: sorting by random 64-bit keys. NumPy keeps a bit generator's raw output the same over
    versions (NEP 19), which it does not promise for `Generator.permutation`.
    """
    order = _permutation(derive_seed(seed, "order", epoch), num_samples)
    order.setflags(write=False)
    return order


def _permutation(seed: int, count: int) -> NDArray[np.int64]:
    keys = np.random.PCG64(seed).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def block_order(seed: int, epoch: int, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the order of an epoch that needs few blocks of samples at a time.

    The blocks are mixed, and the samples of every `BLOCKS_TOGETHER` neighbouring ones among each other.

    Args:
        seed: the seed of the run.
        epoch: which epoch, from 0.
        blocks: [N] the block that each sample lies in.

    Returns:
        [N] a permutation of 0 ... N - 1.
    """
    members = np.split(np.argsort(blocks, kind="stable"), np.flatnonzero(np.diff(np.sort(blocks))) + 1)
    mixed = _permutation(derive_seed(seed, "blocks", epoch), len(members))
    parts = []
    for start in range(0, len(mixed), BLOCKS_TOGETHER):
        together = np.concatenate([members[block] for block in mixed[start : start + BLOCKS_TOGETHER]])
        parts.append(together[_permutation(derive_seed(seed, "order", epoch, start), len(together))])
    return np.concatenate(parts).astype(np.int64)


def balanced_order(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the order of an epoch in which every class comes equally often.

    A class with more samples than its share gives a random part of them, another one each epoch; a class with fewer
    gives all of them as often as it takes. What is left of the division goes to classes drawn anew each epoch.

    Args:
        seed: the seed of the run.
        epoch: which epoch, from 0.
        labels: [N] class index of each sample.

    Returns:
        [N] sample indices, as many as the split has; the number of times that classes occur differs by 1 at the most.
    """
    classes = np.unique(labels)
    share, left = divmod(len(labels), len(classes))
    picked = []
    for place, which in enumerate(_permutation(derive_seed(seed, "classes", epoch), len(classes))):
        members = np.flatnonzero(labels == classes[which])
        mixed = members[_permutation(derive_seed(seed, "members", epoch, int(classes[which])), len(members))]
        picked.append(np.resize(mixed, share + (place < left)))  # repeats them in turn where there are fewer
    drawn = np.concatenate(picked).astype(np.int64)
    return drawn[_permutation(derive_seed(seed, "order", epoch), len(drawn))]


class Visits(NamedTuple):
    """An epoch, visit by visit: which sample, and the epoch plus 2**32 for each time that it came before in it."""

    order: NDArray[np.int64]
    numbers: NDArray[np.int64]


def visits(epoch: int, order: NDArray[np.int64]) -> Visits:
    """Return the visits of an epoch, a sample's second and later ones told apart.

    Args:
        epoch: which epoch, from 0.
        order: [N] the sample of each visit.
    """
    by_sample = np.argsort(order, kind="stable")
    ordered = order[by_sample]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]]
    places = np.arange(len(order))
    copies = np.empty(len(order), dtype=np.int64)
    copies[by_sample] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return Visits(order, epoch + (copies << 32))


def once(epoch: int, order: NDArray[np.int64]) -> Visits:
    """Return the visits of an epoch that comes to each sample once; arguments as of `visits`."""
    return Visits(order, np.broadcast_to(np.int64(epoch), order.shape))


def global_batch(
    step: int,
    *,
    seed: int,
    num_samples: int,
    global_batch_size: int,
    visits_of: Callable[[int], Visits] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the samples of one training step, over all ranks.

    Args:
        step: which step, from 0.
        seed: the seed of the run.
        num_samples: how many samples the training split has, at least 1.
        global_batch_size: samples per step; may be larger than `num_samples`.
        visits_of: the visits of an epoch; None takes `epoch_order`.

    Returns:
        [global_batch_size] the epoch of each sample, and [global_batch_size] its index. A sample that an epoch visits
        several times has 2**32 added to the epoch for each time before, so that it is augmented anew.
    """
    positions = np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_samples)
    numbers, parts = [], []
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        places = offsets[epochs == epoch]
        found = once(epoch, epoch_order(seed, epoch, num_samples)) if visits_of is None else visits_of(epoch)
        parts.append(found.order[places])
        numbers.append(found.numbers[places])
    return np.concatenate(numbers), np.concatenate(parts)


def rank_part(count: int, rank: int, world_size: int, *, in_pairs: bool = False) -> slice:
    """Return the contiguous part of `count` things that belongs to a rank.

    Args:
        count: how many things there are, 0 or more.
        rank: which process, from 0.
        world_size: how many processes there are.
        in_pairs: never part the things 2i and 2i + 1; `count` is even.

    Returns:
        A slice; the parts of all ranks, in order, make up the whole, and differ by 1, or one pair, at the most.
    """
    if in_pairs:
        pairs = rank_part(count // 2, rank, world_size)
        return slice(2 * pairs.start, 2 * pairs.stop)
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


def eval_indices(num_samples: int, rank: int, world_size: int) -> range:
    """Return the samples that a rank evaluates: contiguous, never padded, possibly none.

    Args:
        num_samples: how many samples the split has.
        rank: which process, from 0.
        world_size: how many processes there are.
    """
    part = rank_part(num_samples, rank, world_size)
    return range(part.start, part.stop)
