"""The rule by which pictures that belong together are dealt out to folds, or to parts of unequal size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def deal_groups(
    members: NDArray[np.int64], labels: NDArray[np.int64], num_folds: int, draws: Sequence[int]
) -> NDArray[np.int64]:
    """Return the fold of each group: the largest first, each to where the classes stay most even.

    Args:
        members: [N] the group of each picture.
        labels: [N] its class.
        num_folds: how many folds.
        draws: a seeded number a group, which decides among equals.

    Returns:
        [number of groups] int64.

    Source: the rule of sklearn's StratifiedGroupKFold.
    """
    counts = np.zeros((len(draws), int(labels.max()) + 1))
    np.add.at(counts, (members, labels), 1)
    order = sorted(range(len(draws)), key=lambda number: (-counts[number].sum(), draws[number]))
    return deal_counts(counts, np.ones(num_folds), order)


def deal_counts(counts: NDArray[np.float64], sizes: NDArray[np.float64], order: Iterable[int]) -> NDArray[np.int64]:
    """Deal groups to parts, one after the other, each to where the classes stay nearest to the parts' sizes.

    Args:
        counts: [G, K] how many pictures of each class a group has.
        sizes: [P] how large the parts shall be in relation to each other, above 0.
        order: the groups in the order in which they are dealt.

    Returns:
        [G] int64, the part of each group.
    """
    shares = counts / counts.sum(axis=0).clip(min=1)
    filled = np.zeros((len(sizes), counts.shape[1]))
    pictures = np.zeros(len(sizes))
    part_of = np.zeros(len(counts), dtype=np.int64)
    for group in order:
        # Shares s in a part of size t that holds f raise the sum of squares over sizes by (2 f s + s^2) / t.
        share = shares[group]
        uneven = (filled @ share + share @ share / 2) / sizes
        part = min(range(len(sizes)), key=lambda number: (round(float(uneven[number]), 12), pictures[number], number))
        filled[part] += share
        pictures[part] += counts[group].sum()
        part_of[group] = part
    return part_of
