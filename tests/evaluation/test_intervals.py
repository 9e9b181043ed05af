"""The interval of a mean equals scipy's at every number of figures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation import mean_interval


@pytest.mark.parametrize("count", [2, 3, 5, 10, 21, 22, 30, 50, 500])
def test_mean_interval__is_scipys(count: int) -> None:
    """Mean and half width are those of Student's t, to one in 5,000 beyond the table."""
    values = np.random.default_rng(count).normal(0.9, 0.02, count).tolist()
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx((low + high) / 2, abs=1e-12)
    assert half == pytest.approx((high - low) / 2, rel=1e-6 if count <= 21 else 2e-4)


def test_mean_interval__needs_two() -> None:
    """One figure has no spread."""
    with pytest.raises(RequestError, match="at least two figures; got 1"):
        mean_interval([0.5])
