"""Intervals of figures that are no shares of pictures: the pictures are drawn again, with replacement, many times.

The draws follow from a fixed seed, so the same predictions give the same interval.

Source: Efron 1979; percentile intervals. Several classes a picture use Poisson weights in the place of draws
(Chamandy et al. 2012), so that nothing of the size pictures x classes is made twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.seeding import derive_seed

NUM_DRAWS = 1000
_NUM_WEIGHTINGS = 200  # of several classes a picture, where each costs a pass over pictures x classes
_ROWS = 4096  # pictures weighted at once


def macro_f1_interval(labels: NDArray[np.int64], guesses: NDArray[np.int64], num_classes: int) -> tuple[float, float]:
    """Return the 95 % interval of macro-F1 over the classes that occur or are guessed.

    Args:
        labels: [n] in [0, num_classes); at least one picture.
        guesses: [n] likewise.
        num_classes: K.
    """
    cells, counts = np.unique(labels * num_classes + guesses, return_counts=True)
    of_label, of_guess = np.divmod(cells, num_classes)
    right = of_label == of_guess
    generator = _generator("macro_f1")
    figures = np.empty(NUM_DRAWS)
    for draw in range(NUM_DRAWS):
        drawn = generator.multinomial(len(labels), counts / len(labels))
        hits = np.bincount(of_label[right], drawn[right], num_classes)
        both = np.bincount(of_label, drawn, num_classes) + np.bincount(of_guess, drawn, num_classes)
        figures[draw] = _mean_f1(hits, both)
    return percentile_interval(figures)


def multilabel_draws(
    probabilities: NDArray[np.float32], marks: NDArray[np.bool_], labels: NDArray[np.uint8]
) -> dict[str, NDArray[np.float64]]:
    """Return the figures of several classes a picture on pictures that are drawn again and again.

    The draws are the same for any model on the same pictures in the same order, so that differences are paired.

    Args:
        probabilities: [n, K]; at least one picture.
        marks: [n, K] where a class is predicted.
        labels: [n, K] 1 where a picture has a class; at least one has one.

    Returns:
        `mean_average_precision` and `macro_f1` over the classes that occur, and `micro_f1`: one figure a draw.
    """
    weights = _weightings(len(labels))
    occurs = labels.any(axis=0)
    hits = np.zeros((_NUM_WEIGHTINGS, labels.shape[1]))
    both = np.zeros_like(hits)
    for start in range(0, len(labels), _ROWS):
        have, said = labels[start : start + _ROWS] == 1, marks[start : start + _ROWS]
        drawn = weights[:, start : start + _ROWS].astype(np.float32)
        hits += drawn @ (have & said).astype(np.float32)
        both += drawn @ (have.astype(np.float32) + said)
    ranked = [_average_precisions(weights, labels[:, k], probabilities[:, k]) for k in np.flatnonzero(occurs)]
    sums, times = np.nansum(ranked, axis=0), np.isfinite(ranked).sum(axis=0)
    return {
        "mean_average_precision": sums / np.maximum(1, times),
        "macro_f1": np.array([_mean_f1(row[occurs], of[occurs]) for row, of in zip(hits, both, strict=True)]),
        "micro_f1": 2 * hits.sum(axis=1) / np.maximum(1, both.sum(axis=1)),
    }


def percentile_interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a figure, or of a difference, from its draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _weightings(num_pictures: int) -> NDArray[np.uint8]:
    """Return how often each picture is in each draw [draws, n]."""
    generator = _generator("multilabel_f1")
    parts = [
        generator.poisson(1.0, (_NUM_WEIGHTINGS, min(_ROWS, num_pictures - start))).astype(np.uint8)
        for start in range(0, num_pictures, _ROWS)
    ]
    return np.concatenate(parts, axis=1)


def _average_precisions(
    weights: NDArray[np.uint8], labels: NDArray[np.uint8], scores: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the average precision of one class in each draw [draws]; NaN where no picture of it was drawn.

    Precision is looked at where a picture of the class is; all between two of them is added up at once.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, have = scores[order], labels[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of pictures of one score
    ends = ends[np.add.reduceat(have, np.append(0, ends[:-1] + 1), dtype=np.int64) > 0]
    starts = np.append(0, ends[:-1] + 1)
    drawn = weights[:, order[: ends[-1] + 1]]
    said = np.add.reduceat(drawn, starts, axis=1, dtype=np.float64).cumsum(axis=1)
    gained = np.add.reduceat(drawn * have[: ends[-1] + 1], starts, axis=1, dtype=np.float64)
    right = gained.cumsum(axis=1)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (gained * right / np.maximum(1, said)).sum(axis=1) / right[:, -1]
    return found


def _mean_f1(hits: NDArray[Any], both: NDArray[Any]) -> float:
    """Return the mean of 2 x right / (there + guessed) over the classes that are one of them."""
    known = both > 0
    return float((2 * hits[known] / both[known]).mean()) if known.any() else 0.0


def _generator(what: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(0, "bootstrap", what))
