"""Classes of pictures as names and as numbers: one class a picture, or any number of them (multi-label).

A picture's class is a string, or a tuple of strings where pictures have several or none. As numbers that is an
index into the class names, or a row of zeros and ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Label = str | tuple[str, ...]


def is_multilabel(labels: Sequence[Label]) -> bool:
    """Tell whether pictures have sets of classes."""
    return any(isinstance(label, tuple) for label in labels)


def classes_in(labels: Sequence[Label]) -> set[str]:
    """Return every class that occurs."""
    return {name for label in labels for name in _names(label)}


def encode_labels(labels: Sequence[Label], class_names: Sequence[str]) -> NDArray[np.int64] | NDArray[np.uint8]:
    """Return labels as numbers.

    Args:
        labels: of N pictures; every class is among `class_names`.
        class_names: K names.

    Returns:
        [N] int64, class indices; of sets of classes [N, K] uint8, 1 where a picture has the class.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    if not is_multilabel(labels):
        return np.array([index_of[name] for label in labels for name in _names(label)], dtype=np.int64)
    rows = np.zeros((len(labels), len(class_names)), dtype=np.uint8)
    for row, label in enumerate(labels):
        rows[row, [index_of[name] for name in _names(label)]] = 1
    return rows


def renumber(
    labels: NDArray[np.int64] | NDArray[np.uint8], places: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64] | NDArray[np.uint8]:
    """Return labels under another class map.

    Args:
        labels: [N] indices, or [N, K] zeros and ones.
        places: [K] the new index of each class.
        num_classes: of the new map.
    """
    if labels.ndim == 1:
        return places[labels]
    rows = np.zeros((len(labels), num_classes), dtype=np.uint8)
    rows[:, places] = labels
    return rows


def strata(labels: Sequence[Label]) -> dict[str, list[int]]:
    """Group pictures so that a share of every group is a share of every class.

    Args:
        labels: of N pictures.

    Returns:
        Class to the pictures of it; a picture with several classes goes with its rarest (of equally rare ones the
        first by name), one without any goes under "".
    """
    counts = Counter(name for label in labels for name in _names(label))
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        rarest = min(_names(label), key=lambda name: (counts[name], name), default="")
        groups.setdefault(rarest, []).append(index)
    return groups


def whole_classes(labels: Sequence[Label], chosen: NDArray[np.bool_]) -> list[int]:
    """Return for each class whose pictures are all chosen the first of them; only sets of classes can have such."""
    left = classes_in([label for label, is_chosen in zip(labels, chosen, strict=True) if not is_chosen])
    first: dict[str, int] = {}
    for index in np.flatnonzero(chosen).tolist():
        for name in set(_names(labels[index])) - left:
            first.setdefault(name, index)
    return sorted(set(first.values()))


def _names(label: Label) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label
