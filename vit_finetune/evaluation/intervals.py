"""How sure a figure is: means of folds or seeds, shares of pictures, and two models on the same pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import fsum
from statistics import fmean, stdev

from vit_finetune.common.errors import RequestError

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond, two terms of its expansion around the normal
# (Abramowitz and Stegun 26.7.5).
_T = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
)
_NORMAL = 1.959964


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of figures and half the width of its 95 % interval (Student's t).

    Folds share training pictures, so over folds the interval is somewhat too narrow (Bengio and Grandvalet 2004).

    Args:
        values: one figure a fold or seed, at least two.

    Raises:
        RequestError: there are fewer than two.
    """
    if len(values) < 2:
        raise RequestError(f"an interval needs at least two figures; got {len(values)}")
    freedom = len(values) - 1
    z = _NORMAL
    if freedom <= len(_T):
        t = _T[freedom - 1]
    else:
        t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return fmean(values), t * stdev(values) / math.sqrt(len(values))


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), which stays inside [0, 1] and is fair to few pictures.

    Args:
        right: pictures that count.
        total: all pictures, at least one.

    Raises:
        RequestError: there are none, or more that count than there are.
    """
    if not 0 <= right <= total or total < 1:
        raise RequestError(f"{right} of {total} is no share of at least one picture")
    share, z2 = right / total, _NORMAL**2 / total
    middle = share + z2 / 2
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return how likely a difference as large as this is between two models that are equally good (exact, two-sided).

    Args:
        only_first: pictures that the first model alone has right.
        only_second: pictures that the second model alone has right.

    Returns:
        The p-value in (0, 1]; 1 where the models never differ.

    Source: McNemar 1947, with the binomial distribution in the place of chi squared.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return 1.0
    whole = math.lgamma(total + 1) - total * math.log(2)
    tail = fsum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(total - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def paired_difference(only_first: int, only_second: int, total: int) -> tuple[float, float, float]:
    """Return by how much the second of two models is more accurate on the same pictures, with its 95 % interval.

    Args:
        only_first: pictures that the first model alone has right.
        only_second: pictures that the second model alone has right.
        total: all pictures, at least one.

    Returns:
        The difference of the accuracies, and the lower and upper end.

    Source: Agresti and Min 2005 (10.1002/sim.1781): half a picture is added to each of the four cells.
    """
    first, second, all_of_them = only_first + 0.5, only_second + 0.5, total + 2
    middle = (second - first) / all_of_them
    half = _NORMAL * math.sqrt(first + second - (second - first) ** 2 / all_of_them) / all_of_them
    return (only_second - only_first) / total, max(-1.0, middle - half), min(1.0, middle + half)
