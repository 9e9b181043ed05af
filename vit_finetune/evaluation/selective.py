"""Knowing when not to answer: the least probability that keeps the risk, and telling foreign pictures.

Risk is the share of wrong answers among those given, coverage the share of pictures that are answered.

Sources: selective classification, Geifman and El-Yaniv 2017 (arXiv 1705.08500); the exact bound, Clopper and Pearson
1934; the largest probability as a sign of foreign pictures, Hendrycks and Gimpel 2017 (1610.02136).
Legend: n pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError

CONFIDENCE = 0.95  # of the one-sided bound on the risk


@dataclass(frozen=True)
class Selection:
    """How a model does that abstains below a probability.

    Attributes:
        min_probability: below it the model abstains.
        coverage: share of pictures that are answered.
        risk: share of the answers that are wrong; None where nothing is answered.
        risk_bound: with 95 % confidence the risk is at most this.
        num_answered: pictures that are answered.
        num_samples: pictures.
    """

    min_probability: float
    coverage: float
    risk: float | None
    risk_bound: float
    num_answered: int
    num_samples: int


def choose_threshold(confidence: NDArray[Any], right: NDArray[Any], *, max_risk: float) -> float:
    """Return the least probability at which the most pictures are answered with at most this risk.

    Args:
        confidence: [n], the probability of the first guess.
        right: [n], whether it is right.
        max_risk: in [0, 1).

    Returns:
        A value of `confidence`; above all of them, and so never reached, where no threshold keeps the risk.

    Raises:
        RequestError: there is no picture, or the risk is out of range.
    """
    if not 0 <= max_risk < 1 or not len(confidence):
        raise RequestError(
            f"a risk of at most {max_risk} over {len(confidence)} pictures; give 0 or more, less than 1, and pictures"
        )
    order = np.argsort(-confidence, kind="stable")
    values, wrong = confidence[order], np.cumsum(~np.asarray(right, dtype=bool)[order])
    ends = np.append(values[1:] != values[:-1], True)  # equal probabilities are answered together
    kept = np.flatnonzero(ends & (wrong <= max_risk * np.arange(1, len(values) + 1)))
    return float(values[kept[-1]]) if len(kept) else float(np.nextafter(values[0], np.inf))


def selection_at(min_probability: float, confidence: NDArray[Any], right: NDArray[Any]) -> Selection:
    """Return how answers at a threshold do on pictures.

    Args:
        min_probability: the threshold.
        confidence: [n], the probability of the first guess.
        right: [n], whether it is right.
    """
    answered = confidence >= min_probability
    count, wrong = int(answered.sum()), int((answered & ~np.asarray(right, dtype=bool)).sum())
    return Selection(
        min_probability=min_probability,
        coverage=count / max(1, len(confidence)),
        risk=wrong / count if count else None,
        risk_bound=upper_bound(wrong, count),
        num_answered=count,
        num_samples=len(confidence),
    )


def upper_bound(num_wrong: int, num_answered: int, *, confidence: float = CONFIDENCE) -> float:
    """Return the exact one-sided upper bound of a share (Clopper-Pearson).

    Args:
        num_wrong: how often it happened.
        num_answered: of how many; 0 gives 1.
        confidence: that the true share is not above the bound.
    """
    if num_wrong >= num_answered:
        return 1.0
    counts = np.arange(num_wrong + 1)
    log_choose = np.array(
        [math.lgamma(num_answered + 1) - math.lgamma(k + 1) - math.lgamma(num_answered - k + 1) for k in counts]
    )
    low, high = num_wrong / num_answered, 1.0
    for _ in range(60):  # halved until double precision is used up
        share = (low + high) / 2
        log_terms = log_choose + counts * math.log(share) + (num_answered - counts) * math.log1p(-share)
        low, high = (share, high) if np.exp(log_terms).sum() > 1 - confidence else (low, share)
    return high


def auroc(positive: NDArray[Any], negative: NDArray[Any]) -> float:
    """Return how often a positive scores above a negative, equal ones half: the area under the ROC curve.

    Args:
        positive: scores that should be high.
        negative: scores that should be low.

    Raises:
        RequestError: there are none of one kind.
    """
    if not len(positive) or not len(negative):
        raise RequestError(f"{len(positive)} own and {len(negative)} foreign pictures; give some of both")
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, side="left") + np.searchsorted(ranked, positive, side="right")
    return float(below.sum() / (2 * len(positive) * len(negative)))
