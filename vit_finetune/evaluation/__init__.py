"""How good a model is: exact figures, every picture counted once at any number of processes."""

from vit_finetune.evaluation.calibration import (
    Calibration,
    ReliabilityBin,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    remeasured,
    rescale,
    temperature_of,
)
from vit_finetune.evaluation.intervals import mean_interval
from vit_finetune.evaluation.metrics import METRICS, register_metric, score
from vit_finetune.evaluation.multilabel import MULTILABEL_METRICS, tune_thresholds
from vit_finetune.evaluation.openings import note_opening, num_openings, opening_lines
from vit_finetune.evaluation.outputs import EvalResult, LabelledBatch
from vit_finetune.evaluation.predictions import Predictions, check_output, write_evaluation, write_predictions
from vit_finetune.evaluation.soups import WISE_FT_ALPHAS, Blend, greedy_blend, wise_ft_blend

__all__ = [
    "METRICS",
    "MULTILABEL_METRICS",
    "WISE_FT_ALPHAS",
    "Blend",
    "Calibration",
    "EvalResult",
    "LabelledBatch",
    "Predictions",
    "ReliabilityBin",
    "calibrate",
    "check_output",
    "expected_calibration_error",
    "fit_temperature",
    "greedy_blend",
    "mean_interval",
    "note_opening",
    "num_openings",
    "opening_lines",
    "register_metric",
    "reliability_bins",
    "remeasured",
    "rescale",
    "score",
    "temperature_of",
    "tune_thresholds",
    "wise_ft_blend",
    "write_evaluation",
    "write_predictions",
]
