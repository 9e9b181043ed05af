"""The pictures of a source, with the names of their classes, before the splits share a class map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_finetune.data.image_set import ImageStore
from vit_finetune.data.labels import Label


@dataclass(frozen=True)
class Part:
    """The pictures of a split.

    Attributes:
        store: where they lie.
        classes: the class name, or names, of each.
        groups: what each belongs to (a person, a video), where the source tells.
        times: when each was taken, in any unit, where the source tells.
        weights: what each weighs in the training loss, where the source tells.
    """

    store: ImageStore
    classes: Sequence[Label]
    groups: Sequence[str] | None = None
    times: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None

    def take(self, indices: NDArray[np.int64]) -> Part:
        """Return these pictures alone, in this order."""
        return Part(
            self.store.take(indices),
            [self.classes[index] for index in indices.tolist()],
            None if self.groups is None else [self.groups[index] for index in indices.tolist()],
            None if self.times is None else self.times[indices],
            None if self.weights is None else self.weights[indices],
        )


@dataclass(frozen=True)
class Parts:
    """A source, read: its splits before they share a class map.

    Attributes:
        train: what is trained on.
        val: what selects, where the source has it.
        test: what is scored at the end, where the source has it.
        notes: for people.
        class_names: the class map, where the source declares one.
        is_settled: the splits are a finished run's, and nothing is held out of them.
    """

    train: Part
    val: Part | None
    test: Part | None
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    is_settled: bool = False
