"""How far the model's probabilities can be believed, and what a temperature makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vit_finetune.evaluation.calibration import ReliabilityBin, expected_calibration_error, reliability_bins
from vit_finetune.pages.charts import reliability_chart
from vit_finetune.report.run_folder import RunFolder
from vit_finetune.report.scored import Scored


@dataclass(frozen=True)
class Calibration:
    """What the page says about confidence.

    Attributes:
        chart: how often the model is right when it is so and so sure.
        ece: expected calibration error: the mean distance of confidence and accuracy.
        overconfidence: mean confidence minus accuracy.
        temperature: that was fitted; None where none was.
        fitted_on: the split it was fitted on.
        ece_scaled: the error with that temperature.
    """

    chart: Markup
    ece: float
    overconfidence: float
    temperature: float | None
    fitted_on: str
    ece_scaled: float | None


def temperature_of(run: RunFolder) -> float | None:
    """Return the temperature that the run fitted; None where it fitted none."""
    value = (run.metrics.get("calibration") or {}).get("temperature")
    return None if value is None else float(value)


def calibration_of(run: RunFolder, scored: Scored) -> Calibration:
    """Return calibration before and after the run's temperature, on the scored pictures."""
    ece, after = _error(scored, scored.confidence), None
    bins, scaled = _bins(scored, scored.confidence), []
    if scored.scaled is not None:
        after, scaled = _error(scored, scored.scaled), _bins(scored, scored.scaled)
    then = "" if after is None else f"; after the temperature {after:.3f}"
    return Calibration(
        chart=reliability_chart(bins, scaled, label=f"Reliability: expected calibration error {ece:.3f}{then}"),
        ece=ece,
        overconfidence=float(scored.confidence.mean() - scored.correct.mean()),
        temperature=temperature_of(run),
        fitted_on=str((run.metrics.get("calibration") or {}).get("fitted_on", "")),
        ece_scaled=after,
    )


# A guess and its confidence are all that both need: a matrix of one column, whose class 0 is a right guess.
def _bins(scored: Scored, confidence: NDArray[np.float64]) -> list[ReliabilityBin]:
    return reliability_bins(confidence[:, None], ~scored.correct)


def _error(scored: Scored, confidence: NDArray[np.float64]) -> float:
    return expected_calibration_error(confidence[:, None], ~scored.correct)
