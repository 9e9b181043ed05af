"""What a run said of its pictures, as a comparison needs it: of one class a picture, and of several, told alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.bootstrap import multilabel_draws, percentile_interval
from vit_finetune.evaluation.multilabel import average_precision, f1
from vit_finetune.report.measured import NAMES, Figure, figures_of, multilabel_figures, thresholds_of
from vit_finetune.report.run_folder import PREDICTIONS, RunFolder
from vit_finetune.report.scored import Scored, ScoredSets, at_rows, read_scored, read_scored_sets


@dataclass(frozen=True)
class Change:
    """By how much a figure of one run is above another's on the same pictures.

    Attributes:
        key: its name in metrics.json.
        name: for people.
        difference: of the figures, each in [0, 1].
        low: lower end of the 95 % interval, of a bootstrap over pictures that draws the same for both.
        high: upper end.
    """

    key: str
    name: str
    difference: float
    low: float
    high: float


class Side(ABC):
    """One run of a comparison.

    Attributes:
        class_figure: what classes are compared by.
    """

    class_figure = ""

    def __init__(self, run: RunFolder, scored: Scored | ScoredSets) -> None:
        self.run = run
        self.scored = scored

    def at(self, rows: NDArray[np.int64]) -> Self:
        """Return the run as if it had scored these pictures only."""
        return type(self)(self.run, at_rows(self.scored, rows))

    @property
    @abstractmethod
    def figures(self) -> Sequence[Figure]:
        """The figures of all the pictures that the run scored, with their intervals."""

    @property
    @abstractmethod
    def answers(self) -> list[tuple[str, ...]]:
        """The true class or classes of each picture [n]."""

    @property
    @abstractmethod
    def right(self) -> NDArray[np.bool_]:
        """Whether a picture got exactly its class or classes [n]."""

    @abstractmethod
    def classes_against(self, other: Side) -> list[tuple[str, float, int]]:
        """Return (class, this one's figure minus the other's, pictures of it) where they differ, on equal pictures."""

    @abstractmethod
    def figures_against(self, other: Side) -> list[Change]:
        """Return by how much figures that are no shares of pictures differ, on equal pictures in one order."""


class OneClass(Side):
    """A run of one class a picture."""

    class_figure = "recall"
    scored: Scored

    @property
    def figures(self) -> Sequence[Figure]:
        """The figures of all the pictures that the run scored."""
        return figures_of(self.run, self.scored)

    @property
    def answers(self) -> list[tuple[str, ...]]:
        """The true class of each picture [n]."""
        return [(self.scored.class_names[label],) for label in self.scored.labels.tolist()]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the guess is the true class [n]."""
        return self.scored.correct

    def classes_against(self, other: Side) -> list[tuple[str, float, int]]:
        """Return the classes that are recognised otherwise."""
        mine, theirs = self.right, other.right
        found = []
        for label in np.unique(self.scored.labels[mine != theirs]).tolist():
            rows = self.scored.labels == label
            change = float(mine[rows].mean() - theirs[rows].mean())
            found.append((self.scored.class_names[label], change, int(rows.sum())))
        return found

    def figures_against(self, other: Side) -> list[Change]:
        """Return nothing: what is compared of one class a picture is a share of pictures."""
        del other
        return []


class SeveralClasses(Side):
    """A run of any number of classes a picture."""

    class_figure = "average precision"
    scored: ScoredSets

    @property
    def figures(self) -> Sequence[Figure]:
        """The figures of all the pictures that the run scored."""
        return multilabel_figures(self.run, self.scored)

    @property
    def answers(self) -> list[tuple[str, ...]]:
        """The true classes of each picture [n], in the order of the alphabet."""
        names = self.scored.class_names
        return [tuple(sorted(names[k] for k in np.flatnonzero(row))) for row in self.scored.labels]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether a picture got exactly its classes [n]."""
        found: NDArray[np.bool_] = (self._marks == (self.scored.labels == 1)).all(axis=1)
        return found

    @property
    def _marks(self) -> NDArray[np.bool_]:
        marks: NDArray[np.bool_] = self.scored.probabilities >= thresholds_of(self.run)
        return marks

    @cached_property
    def _ranking(self) -> dict[str, tuple[float, int]]:
        """Average precision and pictures of each class that occurs."""
        labels, scores = self.scored.labels, self.scored.probabilities
        return {
            self.scored.class_names[k]: (average_precision(labels[:, k], scores[:, k]), int(labels[:, k].sum()))
            for k in np.flatnonzero(labels.any(axis=0)).tolist()
        }

    @cached_property
    def _draws(self) -> dict[str, NDArray[np.float64]]:
        return multilabel_draws(self.scored.probabilities, self._marks, self.scored.labels)

    @cached_property
    def _means(self) -> dict[str, float]:
        """What is drawn, on the pictures as they are."""
        labels, marks = self.scored.labels == 1, self._marks
        hits, both = (labels & marks).sum(axis=0), (labels.sum(axis=0), marks.sum(axis=0))
        occurs = np.flatnonzero(labels.any(axis=0))
        return {
            "mean_average_precision": float(np.mean([value for value, _ in self._ranking.values()])),
            "macro_f1": float(np.mean([f1(int(hits[k]), int(both[0][k]), int(both[1][k])) for k in occurs])),
            "micro_f1": f1(int(hits.sum()), int(labels.sum()), int(marks.sum())),
        }

    def classes_against(self, other: Side) -> list[tuple[str, float, int]]:
        """Return the classes that are ranked otherwise."""
        assert isinstance(other, SeveralClasses)
        theirs = other._ranking
        return [(name, value - theirs[name][0], number) for name, (value, number) in self._ranking.items()]

    def figures_against(self, other: Side) -> list[Change]:
        """Return by how much ranking and F1 differ."""
        assert isinstance(other, SeveralClasses)
        if not self._ranking:
            return []  # none of the pictures has any class
        changes = []
        for key, mean in self._means.items():
            value = mean - other._means[key]
            low, high = percentile_interval(self._draws[key] - other._draws[key])
            changes.append(Change(key, NAMES[key], value, min(low, value), max(high, value)))
        return changes


def open_sides(runs: Sequence[RunFolder]) -> list[Side]:
    """Read what the runs of a comparison said.

    Args:
        runs: finished, of one class a picture all, or of several all.

    Raises:
        RequestError: a run has no predictions, or they cannot be compared with the others'.
    """
    first = runs[0]
    for run in runs:
        if not (run.is_done and (run.path / PREDICTIONS).is_file()):
            raise RequestError(f"{run.path} has no {PREDICTIONS}; finish it, with a val or test split")
        if run.is_multilabel != first.is_multilabel:
            several, one = (run, first) if run.is_multilabel else (first, run)
            raise RequestError(
                f"{several.path} is for several classes a picture and {one.path} for one; compare runs of one kind"
            )
        if run.is_multilabel and set(run.class_names) != set(first.class_names):
            odd = sorted(set(run.class_names) ^ set(first.class_names))[:4]
            raise RequestError(f"{first.path} and {run.path} know different classes ({', '.join(odd)}, ...)")
    if first.is_multilabel:
        return [SeveralClasses(run, read_scored_sets(run.path / PREDICTIONS, run.class_names)) for run in runs]
    return [OneClass(run, read_scored(run.path / PREDICTIONS, run.class_names)) for run in runs]
