"""How good a model is: exact figures, every picture counted once at any number of processes."""

from vit_finetune.evaluation.intervals import mean_interval
from vit_finetune.evaluation.metrics import METRICS, EvalResult, LabelledBatch, is_better, score
from vit_finetune.evaluation.predictions import Predictions, check_output, write_evaluation, write_predictions

__all__ = [
    "METRICS",
    "EvalResult",
    "LabelledBatch",
    "Predictions",
    "check_output",
    "is_better",
    "mean_interval",
    "score",
    "write_evaluation",
    "write_predictions",
]
