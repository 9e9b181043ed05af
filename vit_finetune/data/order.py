"""Which sample, in which batch, on which rank: pure functions of numbers.

The training stream is the endless concatenation of one permutation per epoch, cut into global
batches of one size: no epoch ends in a short batch, and step k can be computed without steps
before it. Evaluation cuts the samples into contiguous shards, so every sample is counted once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.seeding import derive_seed


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
    keys = np.random.PCG64(derive_seed(seed, "order", epoch)).random_raw(num_samples)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def global_batch(
    step: int, *, seed: int, num_samples: int, global_batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the samples of one training step, over all ranks.

    Args:
        step: which step, from 0.
        seed: the seed of the run.
        num_samples: how many samples the training split has, at least 1.
        global_batch_size: samples per step; may be larger than `num_samples`.

    Returns:
        [global_batch_size] the epoch of each sample, and [global_batch_size] its index.
    """
    positions = np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, num_samples)
    parts = [
        epoch_order(seed, int(epoch), num_samples)[offsets[epochs == epoch]]
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    return epochs, np.concatenate(parts)


def rank_part(count: int, rank: int, world_size: int) -> slice:
    """Return the contiguous part of `count` things that belongs to a rank.

    Args:
        count: how many things there are, 0 or more.
        rank: which process, from 0.
        world_size: how many processes there are.

    Returns:
        A slice; the parts of all ranks, in order, make up the whole, and differ by 1 at the most.
    """
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
