"""Whether probabilities mean what they say, and the one number that mends them: a temperature.

A temperature divides the logits before the softmax. It is fitted on pictures that the network did not train on, and
changes how sure a prediction is, never which class comes first. For one class a picture only: independent classes
would each need their own.

Sources: temperature scaling and the calibration error in equal bins, Guo et al. 2017 (arXiv 1706.04599).
Legend: n pictures, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.outputs import EvalResult

NUM_BINS = 15  # of Guo et al.


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of about the same confidence.

    Attributes:
        low: the bin holds probabilities above this one (the first bin also 0) ...
        high: ... up to and including this one.
        confidence: the mean probability of the predicted class.
        accuracy: the share of predictions that are right.
        count: pictures.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the temperature with the smallest mean cross-entropy, found by L-BFGS in float64.

    The cross-entropy is convex in 1/temperature, so there is one minimum, unless every first guess is right (surer is
    then always better) or the logits say no more than chance: then no temperature is best and 1 is returned.

    Args:
        logits: [n, K], up to a constant a row, so log-probabilities serve as well; of pictures that did not train.
        labels: class indices [n], in [0, K).

    Returns:
        The temperature, above 0; logits are to be divided by it.

    Raises:
        RequestError: the shapes do not fit, there is no picture, or a value is not finite.

    Source: temperature scaling (arXiv 1706.04599).
    """
    values, target = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or target.shape != values.shape[:1] or len(target) == 0:
        raise RequestError(
            f"logits {values.shape} and labels {target.shape}; give [n, K] and [n] of at least 1 picture"
        )
    if not np.isfinite(values).all():
        raise RequestError("logits hold NaN or infinite values; give finite ones")
    true = values[np.arange(len(target)), target]
    says_something = float((true - values.mean(axis=1)).sum()) > 0
    has_mistakes = bool((values.max(axis=1) > true).any())
    if not (says_something and has_mistakes):
        return 1.0
    return float(np.exp(_log_temperature(torch.from_numpy(values), torch.from_numpy(target))))


def _log_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the logarithm of the best temperature of logits for which there is one."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [log_temperature], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(logits / log_temperature.exp(), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach())


def log_probabilities(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return logarithms [n, K], which are logits up to a constant a row; 0 counts as float32's smallest number."""
    clipped = np.maximum(np.asarray(probabilities, dtype=np.float64), np.finfo(np.float32).tiny)
    out: NDArray[np.float64] = np.log(clipped)
    return out


def rescale(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float32]:
    """Return what the softmax gives at a temperature, from what it gave without one.

    Args:
        probabilities: [n, K], each row adding up to 1.
        temperature: above 0; 1 changes nothing.

    Returns:
        Probabilities [n, K].
    """
    scaled = torch.from_numpy(log_probabilities(probabilities) / temperature)
    out: NDArray[np.float32] = scaled.softmax(dim=1).float().numpy()
    return out


def reliability_bins(
    probabilities: NDArray[Any], labels: NDArray[Any], *, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """Return predictions in equally wide bins of confidence, as a reliability diagram shows them.

    Args:
        probabilities: [n, K].
        labels: class indices [n].
        num_bins: equal parts of [0, 1].

    Returns:
        The bins that hold pictures, ascending.

    Raises:
        RequestError: the shapes do not fit, or there is no bin.
    """
    values, target = np.asarray(probabilities), np.asarray(labels)
    if values.ndim != 2 or target.shape != values.shape[:1] or num_bins < 1:
        raise RequestError(
            f"probabilities {values.shape}, labels {target.shape} and {num_bins} bins; give [n, K], [n] and at least 1"
        )
    if len(target) == 0:
        return []
    confidence, right = values.max(axis=1).astype(np.float64), values.argmax(axis=1) == target
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    return [
        ReliabilityBin(
            low=float(edges[row]),
            high=float(edges[row + 1]),
            confidence=float(confidence[place == row].mean()),
            accuracy=float(right[place == row].mean()),
            count=int((place == row).sum()),
        )
        for row in np.unique(place).tolist()
    ]


def expected_calibration_error(probabilities: NDArray[Any], labels: NDArray[Any], *, num_bins: int = NUM_BINS) -> float:
    """Return the mean distance of confidence and accuracy over bins, weighted by their pictures; 0 without pictures.

    Args:
        probabilities: [n, K].
        labels: class indices [n].
        num_bins: equal parts of [0, 1].

    Returns:
        A fraction between 0 and 1.
    """
    bins = reliability_bins(probabilities, labels, num_bins=num_bins)
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in bins) / max(1, total)


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature and what it mends.

    Attributes:
        temperature: see `fit_temperature`.
        fitted_on: the split it was fitted on.
        num_fitted: pictures of that split.
        measured_on: the split that both errors are of; the same one where no other was held out, and then flattering.
        ece: expected calibration error of the probabilities as the network gives them.
        ece_scaled: of the ones at the temperature.
    """

    temperature: float
    fitted_on: str
    num_fitted: int
    measured_on: str
    ece: float
    ece_scaled: float

    def line(self) -> str:
        """Return the calibration in words."""
        return (
            f"temperature {self.temperature:.3f}, fitted on {self.num_fitted} pictures of {self.fitted_on}; "
            f"calibration error on {self.measured_on} {self.ece:.4f}, with it {self.ece_scaled:.4f}"
        )


def temperature_of(calibration: Calibration | None) -> float | None:
    """Return what was fitted, or None where nothing was."""
    return None if calibration is None else calibration.temperature


def calibrate(on_val: EvalResult, final: EvalResult, *, measured_on: str) -> Calibration:
    """Fit a temperature on the val split and measure it on the split whose figures count.

    Args:
        on_val: of one class a picture, with predictions kept.
        final: the same, of the test split; or of val again where there is none.
        measured_on: the name of that split.

    Raises:
        RequestError: val has no picture with a label.
    """
    known = on_val.labels >= 0
    temperature = fit_temperature(log_probabilities(on_val.probabilities[known]), on_val.labels[known])
    fitted = Calibration(temperature, "val", int(known.sum()), measured_on, ece=0.0, ece_scaled=0.0)
    return remeasured(fitted, final, measured_on=measured_on)


def remeasured(calibration: Calibration, final: EvalResult, *, measured_on: str) -> Calibration:
    """Return a calibration with its errors measured on other pictures.

    Args:
        calibration: the temperature to measure.
        final: of one class a picture, with predictions kept.
        measured_on: the name of that split.
    """
    known = final.labels >= 0
    raw, labels = final.probabilities[known], final.labels[known]
    return replace(
        calibration,
        measured_on=measured_on,
        ece=expected_calibration_error(raw, labels),
        ece_scaled=expected_calibration_error(rescale(raw, calibration.temperature), labels),
    )
