"""Intervals and paired tests against scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.bootstrap import (
    _weightings,
    macro_f1_interval,
    multilabel_draws,
    percentile_interval,
)
from vit_finetune.evaluation.intervals import mcnemar, paired_difference, wilson_interval


@pytest.mark.parametrize(("right", "total"), [(0, 1), (1, 1), (3, 7), (96, 100), (0, 500), (99_990, 100_000)])
def test_wilson_interval__equals_scipy(right: int, total: int) -> None:
    """The interval of a share is scipy's Wilson interval, at the ends too."""
    theirs = stats.binomtest(right, total).proportion_ci(method="wilson")
    assert wilson_interval(right, total) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def test_wilson_interval__no_pictures() -> None:
    """A share of nothing is refused in words."""
    with pytest.raises(RequestError, match="0 of 0 is no share"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (1, 9), (9, 1), (0, 40), (300, 380), (52_000, 50_000)])
def test_mcnemar__equals_scipy(first: int, second: int) -> None:
    """The exact paired test is scipy's two-sided binomial test of the pictures where the models differ."""
    theirs = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(theirs, rel=1e-6)


def test_paired_difference__covers() -> None:
    """The interval of a difference holds the true one in about 95 of 100 experiments, also with few pictures."""
    generator = np.random.default_rng(0)
    for total, cells in ((30, (0.7, 0.05, 0.15, 0.1)), (400, (0.9, 0.03, 0.02, 0.05))):
        drawn = generator.multinomial(total, cells, size=2000)
        held = [
            low <= cells[2] - cells[1] <= high
            for _, low, high in (paired_difference(*row[1:3], total) for row in drawn)
        ]
        assert 0.93 <= np.mean(held) <= 0.99
    assert paired_difference(2, 5, 100)[0] == pytest.approx(0.03)


def test_macro_f1_interval__equals_scipy_bootstrap() -> None:
    """The interval of macro-F1 is the percentile interval that scipy draws with scikit-learn's figure."""
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 150)
    guesses = np.where(generator.random(150) < 0.7, labels, generator.integers(0, 3, 150))
    theirs = stats.bootstrap(
        (labels, guesses),
        lambda true, said: f1_score(true, said, average="macro"),
        paired=True,
        vectorized=False,
        n_resamples=600,
        method="percentile",
        random_state=np.random.default_rng(2),
    ).confidence_interval
    assert macro_f1_interval(labels, guesses, 3) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_macro_f1_interval__repeats() -> None:
    """The same predictions give the same interval, and one without an error has no width."""
    labels = np.arange(12) % 4
    assert macro_f1_interval(labels, labels, 9) == (1.0, 1.0)
    wrong = np.roll(labels, 1)
    wrong[:6] = labels[:6]
    assert macro_f1_interval(labels, wrong, 9) == macro_f1_interval(labels, wrong, 9)


def test_multilabel_draws__are_scikit_learns_figures() -> None:
    """Each draw is scikit-learn's figure of pictures that count as often as they were drawn, ties included."""
    generator = np.random.default_rng(3)
    labels = (generator.random((90, 4)) < 0.2).astype(np.uint8)
    labels[:, 3] = 0
    probabilities = np.round(np.clip(0.3 * labels + generator.random((90, 4)), 0, 1), 1).astype(np.float32)
    marks = probabilities >= 0.6
    draws = multilabel_draws(probabilities, marks, labels)
    for draw, weights in enumerate(_weightings(90)[:20]):
        ranked = [
            average_precision_score(labels[:, k], probabilities[:, k], sample_weight=weights)
            for k in range(3)
            if weights @ labels[:, k]
        ]
        assert draws["mean_average_precision"][draw] == pytest.approx(np.mean(ranked))
        for average in ("macro", "micro"):
            theirs = f1_score(labels[:, :3], marks[:, :3], average=average, sample_weight=weights)
            wrong = f1_score(labels, marks, average=average, sample_weight=weights)
            figure = draws[f"{average}_f1"][draw]
            assert figure == pytest.approx(theirs if average == "macro" else wrong)
    low, high = percentile_interval(draws["micro_f1"])
    assert low < f1_score(labels, marks, average="micro") < high


def test_multilabel_draws__pair_models_of_the_same_pictures() -> None:
    """The draws do not depend on the model, and their interval is as wide as a bootstrap of pictures makes it."""
    generator = np.random.default_rng(4)
    labels = (generator.random((5000, 4)) < 0.3).astype(np.uint8)
    marks = np.where(generator.random((5000, 4)) < 0.1, 1 - labels, labels) == 1
    found = multilabel_draws(marks.astype(np.float32), marks, labels)
    again = multilabel_draws(marks.astype(np.float32) / 2, marks, labels)
    assert all(np.array_equal(found[key], again[key]) for key in found)
    draws = [generator.integers(0, 5000, 5000) for _ in range(60)]
    spread = 2 * 1.96 * np.std([f1_score(labels[rows], marks[rows], average="macro") for rows in draws])
    low, high = percentile_interval(found["macro_f1"])
    assert high - low == pytest.approx(spread, rel=0.35)
