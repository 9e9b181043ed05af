"""The mean of a few figures with its 95 % interval: folds or seeds of one recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
