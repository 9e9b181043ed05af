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
    return _percentiles(figures)


def multilabel_f1_intervals(
    marks: NDArray[np.bool_], labels: NDArray[np.uint8]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the 95 % intervals of macro-F1 over the classes that occur, and of micro-F1.

    Args:
        marks: [n, K] where a class is predicted; at least one picture.
        labels: [n, K] 1 where a picture has a class.
    """
    generator = _generator("multilabel_f1")
    occurs = labels.any(axis=0)
    hits = np.zeros((_NUM_WEIGHTINGS, labels.shape[1]))
    both = np.zeros_like(hits)
    for start in range(0, len(labels), _ROWS):
        have, said = labels[start : start + _ROWS] == 1, marks[start : start + _ROWS]
        weights = generator.poisson(1.0, (_NUM_WEIGHTINGS, len(have))).astype(np.float32)
        hits += weights @ (have & said).astype(np.float32)
        both += weights @ (have.astype(np.float32) + said)
    macro = np.array([_mean_f1(row[occurs], sums[occurs]) for row, sums in zip(hits, both, strict=True)])
    micro = 2 * hits.sum(axis=1) / np.maximum(1, both.sum(axis=1))
    return _percentiles(macro), _percentiles(micro)


def _mean_f1(hits: NDArray[Any], both: NDArray[Any]) -> float:
    """Return the mean of 2 x right / (there + guessed) over the classes that are one of them."""
    known = both > 0
    return float((2 * hits[known] / both[known]).mean()) if known.any() else 0.0


def _percentiles(figures: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)


def _generator(what: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(0, "bootstrap", what))
