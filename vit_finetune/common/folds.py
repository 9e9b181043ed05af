"""The rule by which pictures that belong together are dealt out to folds."""

from __future__ import annotations

from collections.abc import Sequence

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
    shares = counts / counts.sum(axis=0).clip(min=1)
    filled = np.zeros((num_folds, counts.shape[1]))
    sizes = np.zeros(num_folds)
    fold_of = np.zeros(len(draws), dtype=np.int64)
    for group in sorted(range(len(draws)), key=lambda number: (-counts[number].sum(), draws[number])):
        # Adding shares s to a fold that holds f raises the sum of squares by 2 f s + s^2: the least f s is most even.
        uneven = filled @ shares[group]
        fold = min(range(num_folds), key=lambda number: (round(float(uneven[number]), 12), sizes[number], number))
        filled[fold] += shares[group]
        sizes[fold] += counts[group].sum()
        fold_of[group] = fold
    return fold_of
