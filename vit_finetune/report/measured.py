"""The figures of a report with their intervals, and one row for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_finetune.evaluation.bootstrap import macro_f1_interval, multilabel_draws, percentile_interval
from vit_finetune.evaluation.intervals import wilson_interval
from vit_finetune.report.run_folder import RunFolder
from vit_finetune.report.scored import Scored, ScoredSets

NAMES = {
    "accuracy": "accuracy",
    "macro_accuracy": "mean accuracy of a class",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "top5": "top-5 accuracy",
    "mean_average_precision": "mean average precision",
    "loss": "cross-entropy",
}
HOW = {
    "accuracy": "the guess is right",
    "macro_f1": "F1 of a class, mean over classes",
    "top5": "the class is among the five first guesses",
    "micro_f1": "over all decisions",
    "mean_average_precision": "ranking of each class, mean over classes",
}


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Attributes:
        key: its name in metrics.json.
        name: for people.
        how: what it counts, in a few words.
        value: in [0, 1].
        low: lower end of the 95 % interval; None where there is none.
        high: the upper end.
        method: how the interval was found; empty without one.
    """

    key: str
    name: str
    how: str
    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""


@dataclass(frozen=True)
class ClassRow:
    """What happened to the pictures of one class.

    Attributes:
        name: of the class.
        num_train: its training pictures; None where nobody wrote them down.
        num_samples: its pictures among the scored ones.
        num_correct: those that were recognised.
        num_guessed: pictures that were said to be of it.
        recall: num_correct / num_samples, with its interval; None where the class does not occur.
        interval: 95 %, of the recall.
        precision: num_correct / num_guessed; None where it was never guessed.
        f1: of both; None where the class neither occurs nor is guessed.
        taken_for: the class that it is most often taken for, with the number of pictures.
        average_precision: of several classes a picture.
        threshold: likewise.
    """

    name: str
    num_train: int | None
    num_samples: int
    num_correct: int
    num_guessed: int
    recall: float | None
    interval: tuple[float, float] | None
    precision: float | None
    f1: float | None
    taken_for: tuple[str, int] | None = None
    average_precision: float | None = None
    threshold: float | None = None


def figures_of(run: RunFolder, scored: Scored | None) -> list[Figure]:
    """Return accuracy, macro-F1 and top-5 with their intervals, of one class a picture.

    Args:
        run: its metrics.json has the values.
        scored: the pictures; None where the predictions are gone, which leaves macro-F1 without an interval.
    """
    total = int(run.metrics.get("num_samples", 0))
    rows = []
    for key in ("accuracy", "macro_f1", "top5"):
        if key not in run.figures or not total:
            continue
        value, interval, method = run.figures[key], None, ""
        if key == "macro_f1":
            if scored is not None:
                interval = macro_f1_interval(scored.labels, scored.guesses, len(scored.class_names))
                method = "bootstrap over pictures"
        else:
            interval, method = wilson_interval(round(value * total), total), "Wilson"
        rows.append(_figure(key, value, interval, method))
    return rows


def multilabel_figures(run: RunFolder, scored: ScoredSets | None) -> list[Figure]:
    """Return mean average precision, both F1 and the exact-match accuracy, of several classes a picture."""
    total = int(run.metrics.get("num_samples", 0))
    if not total:
        return []
    intervals: dict[str, tuple[float, float]] = {}
    if scored is not None and scored.labels.any():
        draws = multilabel_draws(scored.probabilities, scored.probabilities >= thresholds_of(run), scored.labels)
        intervals = {key: percentile_interval(figures) for key, figures in draws.items()}
    exact = wilson_interval(round(run.figures["accuracy"] * total), total)
    return [
        *(
            _figure(key, run.figures[key], intervals.get(key), "bootstrap over pictures")
            for key in ("mean_average_precision", "macro_f1", "micro_f1")
        ),
        _figure("accuracy", run.figures["accuracy"], exact, "Wilson"),
    ]


def _figure(key: str, value: float, interval: tuple[float, float] | None, method: str) -> Figure:
    if interval is None:
        return Figure(key, NAMES[key], HOW[key], value)
    # A bootstrap of figures at the edge may leave the figure itself just outside of its percentiles.
    return Figure(key, NAMES[key], HOW[key], value, min(interval[0], value), max(interval[1], value), method)


def thresholds_of(run: RunFolder) -> NDArray[np.float64]:
    """Return the probability from which on each class is predicted [K]."""
    return np.array([row.get("threshold", 0.5) for row in run.metrics.get("per_class", ())])


def class_rows(
    class_names: Sequence[str],
    scored: Scored,
    *,
    num_train: Sequence[int] | None,
) -> list[ClassRow]:
    """Return a row for each class, in the order of the head.

    Args:
        class_names: K names.
        scored: the pictures.
        num_train: training pictures of each class [K], if known.
    """
    num_classes = len(class_names)
    seen = np.bincount(scored.labels, minlength=num_classes)
    guessed = np.bincount(scored.guesses, minlength=num_classes)
    right = np.bincount(scored.labels[scored.correct], minlength=num_classes)
    worst = _most_taken_for(scored)
    rows = []
    for k, name in enumerate(class_names):
        have, said, hits = int(seen[k]), int(guessed[k]), int(right[k])
        other = worst.get(k)
        rows.append(
            ClassRow(
                name,
                None if num_train is None else num_train[k],
                have,
                hits,
                said,
                recall=hits / have if have else None,
                interval=wilson_interval(hits, have) if have else None,
                precision=hits / said if said else None,
                f1=2 * hits / (have + said) if have + said else None,
                taken_for=None if other is None else (class_names[other[0]], other[1]),
            )
        )
    return rows


def multilabel_rows(run: RunFolder, scored: ScoredSets | None, *, num_train: Sequence[int] | None) -> list[ClassRow]:
    """Return a row for each class of several a picture: the figures of metrics.json, and what was guessed."""
    marked = None if scored is None else (scored.probabilities >= thresholds_of(run)).sum(axis=0)
    rows = []
    for k, row in enumerate(run.metrics.get("per_class", ())):
        have, hits = row["num_samples"], row["num_correct"]
        said = 0 if marked is None else int(marked[k])
        rows.append(
            ClassRow(
                row["class"],
                None if num_train is None else num_train[k],
                have,
                hits,
                said,
                recall=row["accuracy"],
                interval=wilson_interval(hits, have) if have else None,
                precision=hits / said if said else None,
                f1=row["f1"] if have else None,
                average_precision=row["average_precision"],
                threshold=row["threshold"],
            )
        )
    return rows


@dataclass(frozen=True)
class Pair:
    """Pictures of one class that were taken for another.

    Attributes:
        label: number of the true class.
        guess: number of the class that was guessed.
        count: pictures.
    """

    label: int
    guess: int
    count: int


def confused_pairs(scored: Scored) -> list[Pair]:
    """Return every pair of true and guessed class that occurs and is wrong, the most frequent first."""
    wrong = ~scored.correct
    num_classes = len(scored.class_names)
    cells, counts = np.unique(scored.labels[wrong] * num_classes + scored.guesses[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    labels, guesses = np.divmod(cells, num_classes)
    return [Pair(int(labels[row]), int(guesses[row]), int(counts[row])) for row in order]


def _most_taken_for(scored: Scored) -> dict[int, tuple[int, int]]:
    """Return for each class that was mistaken the class it was most often taken for, and how often."""
    found: dict[int, tuple[int, int]] = {}
    for pair in confused_pairs(scored):
        found.setdefault(pair.label, (pair.guess, pair.count))
    return found
