"""Figures for pictures that have any number of classes: ranking, and decisions at a threshold for each class.

Ranks need every picture at once, so probabilities are gathered from all processes and each computes the same figures.

Sources: average precision as the sum over recall steps of the precision, ties together (scikit-learn's
`average_precision_score`); thresholds that maximise F1, class by class, as Yang 2001 (SCut, SIGIR) does by accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vit_finetune.evaluation.outputs import EvalResult, LabelledBatch, check_count, gathered

if TYPE_CHECKING:
    from accelerate import Accelerator

MULTILABEL_METRICS = ("mean_average_precision", "macro_f1", "micro_f1", "accuracy", "loss")
HALF = 0.5  # the threshold of a class for which none was tuned


def score_multilabel(
    found: Iterable[tuple[LabelledBatch, Tensor]],
    *,
    class_names: Sequence[str],
    num_expected: int | Callable[[], int],
    accelerator: Accelerator | None,
    thresholds: Sequence[float] | None,
) -> EvalResult:
    """Return the figures of a split whose pictures have any number of classes.

    Args:
        found: this process's batches and logits.
        class_names: K names.
        num_expected: pictures of the whole split, or what tells how many of them can be read.
        accelerator: gathers over its processes; None for one.
        thresholds: [K], a class is predicted from this probability on; None takes 0.5.

    Returns:
        The same on every process. Metrics: `loss` (cross-entropy of a class, mean), `mean_average_precision` and
        `macro_f1` over the classes that occur, `micro_f1`, and `accuracy`, the share of pictures with exactly their
        classes. Rows of classes: `num_samples` that have it, `num_correct` of these found, `accuracy` their share,
        `average_precision`, `f1`, `threshold`. Every picture's probabilities.

    Raises:
        WorkError: a picture was missed or counted twice.
    """
    kept: list[tuple[np.ndarray, ...]] = []
    for batch, logits in found:
        targets = batch.labels.to(logits)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").double().mean(dim=1)
        tensors = (batch.indices, batch.labels, logits.sigmoid(), losses)
        kept.append(tuple(tensor.cpu().numpy() for tensor in tensors))
    joined = gathered(kept, accelerator)
    if joined is None:
        none = np.zeros((0, len(class_names)))
        joined = np.zeros(0, dtype=np.int64), none.astype(np.uint8), none.astype(np.float32), np.zeros(0)
    indices, labels, probabilities, per_picture = joined
    check_count(len(indices), num_expected)
    cuts = np.full(len(class_names), HALF) if thresholds is None else np.asarray(thresholds)
    rows = [_of_class(name, labels[:, k], probabilities[:, k], cuts[k]) for k, name in enumerate(class_names)]
    metrics = {
        "loss": float(per_picture.mean()) if len(indices) else 0.0,
        **_over_classes(rows, labels, probabilities, cuts),
    }
    return EvalResult(metrics, len(indices), rows, indices, labels, probabilities)


def _of_class(name: str, labels: NDArray[Any], probabilities: NDArray[Any], threshold: float) -> dict[str, Any]:
    """Return the row of a class."""
    guessed = probabilities >= threshold
    have, right = int(labels.sum()), int((guessed & (labels == 1)).sum())
    occurs = have > 0
    return {
        "class": name,
        "num_samples": have,
        "num_correct": right,
        "accuracy": right / have if occurs else None,
        "average_precision": average_precision(labels, probabilities) if occurs else None,
        "f1": f1(right, have, int(guessed.sum())),
        "threshold": float(threshold),
    }


def _over_classes(
    rows: Sequence[dict[str, Any]], labels: NDArray[Any], probabilities: NDArray[Any], cuts: NDArray[Any]
) -> dict[str, float]:
    """Return the figures over all classes."""
    guessed = probabilities >= cuts
    occurring = [row for row in rows if row["num_samples"]]
    right = sum(row["num_correct"] for row in rows)
    return {
        "mean_average_precision": float(np.mean([row["average_precision"] for row in occurring])) if occurring else 0.0,
        "macro_f1": float(np.mean([row["f1"] for row in occurring])) if occurring else 0.0,
        "micro_f1": f1(right, int(labels.sum()), int(guessed.sum())),
        "accuracy": float((guessed == labels).all(axis=1).mean()) if len(labels) else 0.0,
    }


def f1(right: int, have: int, guessed: int) -> float:
    """Return the harmonic mean of precision and recall; 0 where nothing was there and nothing guessed.

    Args:
        right: pictures of the class that were found.
        have: pictures of the class.
        guessed: pictures that were said to be.
    """
    return 2 * right / (have + guessed) if have + guessed else 0.0


def average_precision(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the mean precision over the pictures of a class, each at the cut that includes it and its equals.

    Args:
        labels: [n] 1 for pictures of the class, of which there is at least one.
        scores: [n] the higher, the more likely.
    """
    _, right, guessed = _cuts(labels, scores)
    gained = np.diff(right, prepend=0)
    return float((gained * right / guessed).sum() / right[-1])


def tune_thresholds(labels: NDArray[Any], probabilities: NDArray[Any]) -> list[float]:
    """Return for each class the threshold with the best F1 on these pictures; of equal ones the closest to 0.5.

    Args:
        labels: [n, K] 1 for a class that a picture has.
        probabilities: [n, K].

    Returns:
        K probabilities, each half way between two pictures; 0.5 for a class that does not occur.
    """
    return [_best_cut(labels[:, k], probabilities[:, k]) for k in range(labels.shape[1])]


def _best_cut(labels: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Return the threshold of one class."""
    have = int(labels.sum())
    if have == 0:
        return HALF
    lowest, right, guessed = _cuts(labels, probabilities.astype(np.float64))
    figures = 2 * right / (have + guessed)
    middles = (lowest + np.append(lowest[1:], 0.0)) / 2
    return float(min(zip(-figures, np.abs(middles - HALF), middles, strict=True))[2])


def _cuts(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return for each different score, from the highest: itself, and how many from it up are right, and are."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of its equals
    return ranked[last], np.cumsum(labels[order], dtype=np.int64)[last], np.arange(1, len(labels) + 1)[last]
