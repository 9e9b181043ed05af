"""Calibration: the temperature is scipy's, the error is counted by hand, and the first guess never changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation import EvalResult
from vit_finetune.evaluation.calibration import (
    calibrate,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    rescale,
)


def drawn(num: int, *, sureness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that claim `sureness` times what is true, and labels drawn from the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, (num, 4))
    labels = np.array([rng.choice(4, p=row) for row in softmax(truth, axis=1)])
    return truth * sureness, labels


@pytest.mark.parametrize("sureness", [0.01, 0.5, 1.0, 3.0, 200.0])
def test_fit_temperature__is_the_minimum_that_scipy_finds(sureness: float) -> None:
    """Over sure and unsure logits of any scale the temperature is scipy's bounded minimum of the cross-entropy."""
    logits, labels = drawn(400, sureness=sureness)

    def loss(log_temperature: float) -> float:
        rows = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-rows[np.arange(len(labels)), labels].mean())

    expected = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10}).x
    assert np.log(fit_temperature(logits, labels)) == pytest.approx(expected, abs=1e-5)


def test_fit_temperature__finds_the_factor_it_was_told() -> None:
    """Logits three times too sure need a temperature of three, within what 20,000 drawn labels can tell."""
    assert fit_temperature(*drawn(20_000, sureness=3.0)) == pytest.approx(3.0, rel=0.03)


def test_fit_temperature__a_constant_a_row_does_not_matter() -> None:
    """Log-probabilities in the place of logits give the same temperature."""
    logits, labels = drawn(200, sureness=2.0)
    assert fit_temperature(log_softmax(logits, axis=1), labels) == pytest.approx(fit_temperature(logits, labels))


def test_fit_temperature__without_a_minimum_is_one() -> None:
    """Where no mistake was made, or nothing is known, no temperature is best and none is invented."""
    sure, labels = np.eye(3)[[0, 1, 2, 1]] * 5, np.array([0, 1, 2, 1])
    assert fit_temperature(sure, labels) == 1.0
    assert fit_temperature(np.zeros((4, 3)), labels) == 1.0
    assert fit_temperature(-sure, labels) == 1.0


def test_fit_temperature__refuses_what_does_not_fit() -> None:
    """Other shapes, no pictures and NaN are refused in words."""
    with pytest.raises(RequestError, match=r"logits \(4, 3\) and labels \(3,\)"):
        fit_temperature(np.zeros((4, 3)), np.zeros(3))
    with pytest.raises(RequestError, match="at least 1 picture"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0))
    with pytest.raises(RequestError, match="NaN"):
        fit_temperature(np.full((1, 3), np.nan), np.zeros(1))


def test_expected_calibration_error__counted_by_hand() -> None:
    """Five pictures in three bins of five: |2/2 - 0.95|, |1/2 - 0.75| and |0 - 0.55|, weighted 2, 2 and 1 of 5."""
    first = np.array([0.9, 1.0, 0.7, 0.8, 0.55])
    probabilities = np.stack([first, 1 - first], axis=1)
    labels = np.array([0, 0, 0, 1, 1])
    bins = reliability_bins(probabilities, labels, num_bins=5)
    assert [(part.count, part.accuracy) for part in bins] == [(1, 0.0), (2, 0.5), (2, 1.0)]
    assert [part.confidence for part in bins] == pytest.approx([0.55, 0.75, 0.95])
    assert [(part.low, part.high) for part in bins] == [(0.4, pytest.approx(0.6)), (pytest.approx(0.6), 0.8), (0.8, 1)]
    expected = (2 * 0.05 + 2 * 0.25 + 1 * 0.55) / 5
    assert expected_calibration_error(probabilities, labels, num_bins=5) == pytest.approx(expected)
    assert expected_calibration_error(np.zeros((0, 2)), np.zeros(0)) == 0


def test_rescale__is_the_softmax_of_divided_logits_and_keeps_the_order() -> None:
    """Probabilities at a temperature are scipy's softmax of the divided logits; every ranking stays."""
    logits, _ = drawn(300, sureness=4.0)
    raw = softmax(logits, axis=1).astype(np.float32)
    for temperature in (0.3, 1.0, 5.0):
        scaled = rescale(raw, temperature)
        np.testing.assert_allclose(scaled, softmax(logits / temperature, axis=1), atol=1e-5)
        np.testing.assert_array_equal(scaled.argmax(axis=1), raw.argmax(axis=1))


def test_calibrate__mends_what_was_held_out() -> None:
    """A temperature fitted on val makes the error of other pictures of an over-sure model small; -1 is left out."""

    def result(seed: int) -> EvalResult:
        logits, labels = drawn(2_000, sureness=3.0, seed=seed)
        labels[:10] = -1
        return EvalResult({}, 2_000, [], np.arange(2_000), labels, softmax(logits, axis=1).astype(np.float32))

    found = calibrate(result(1), result(2), measured_on="test")
    assert (found.fitted_on, found.measured_on, found.num_fitted) == ("val", "test", 1_990)
    assert found.ece > 0.1
    assert found.ece_scaled < 0.05  # 2,000 pictures in 15 bins: chance alone makes about 0.03
    assert "temperature" in found.line()
