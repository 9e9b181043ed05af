"""Abstaining: thresholds by trying every one, scipy's exact bound, scikit-learn's area under the curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.selective import auroc, choose_threshold, selection_at, upper_bound

GUESSES = st.lists(st.tuples(st.sampled_from([0.2, 0.4, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=12)


@given(GUESSES, st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_choose_threshold__no_other_answers_more_within_the_risk(
    guesses: list[tuple[float, bool]], max_risk: float
) -> None:
    """Of all thresholds that keep the risk none answers more pictures; where none keeps it nothing is answered."""
    confidence, right = np.array([value for value, _ in guesses]), np.array([is_right for _, is_right in guesses])
    found = selection_at(choose_threshold(confidence, right, max_risk=max_risk), confidence, right)
    fitting = [
        int(answered.sum())
        for answered in (confidence >= value for value in confidence)
        if (~right[answered]).mean() <= max_risk
    ]
    assert found.num_answered == max(fitting, default=0)
    assert (found.risk or 0.0) <= max_risk


@pytest.mark.parametrize(("wrong", "count"), [(0, 1), (0, 149), (3, 200), (57, 60), (500, 20_000)])
def test_upper_bound__is_scipys_exact_one(wrong: int, count: int) -> None:
    """The one-sided 95 % bound is Clopper and Pearson's, which scipy gives as the end of a 90 % interval."""
    expected = binomtest(wrong, count).proportion_ci(confidence_level=0.9, method="exact").high
    assert upper_bound(wrong, count) == pytest.approx(expected, rel=1e-6)
    assert (upper_bound(0, 0), upper_bound(4, 4)) == (1.0, 1.0)


def test_auroc__is_scikit_learns_with_ties() -> None:
    """Of scores with many equal ones the area is scikit-learn's."""
    rng = np.random.default_rng(0)
    own, foreign = rng.integers(2, 9, 70) / 8, rng.integers(0, 7, 50) / 8
    expected = roc_auc_score([1] * 70 + [0] * 50, np.concatenate([own, foreign]))
    assert auroc(own, foreign) == pytest.approx(expected)
    with pytest.raises(RequestError, match="0 foreign"):
        auroc(own, np.array([]))


def test_selection__written_out() -> None:
    """Two of four are answered, one of them wrong."""
    found = selection_at(0.8, np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert (found.coverage, found.risk, found.num_answered, found.num_samples) == (0.5, 0.5, 2, 4)
    assert found.risk_bound == pytest.approx(0.9747, abs=1e-4)
    with pytest.raises(RequestError, match="a risk of at most 1"):
        choose_threshold(np.ones(2), np.ones(2, dtype=bool), max_risk=1.0)
