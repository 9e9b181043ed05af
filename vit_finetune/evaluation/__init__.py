"""How good a model is: exact figures, every picture counted once at any number of processes."""

from vit_finetune.evaluation.intervals import mean_interval
from vit_finetune.evaluation.metrics import METRICS, EvalResult, LabelledBatch, is_better, score
from vit_finetune.evaluation.predictions import Predictions, check_output, write_evaluation, write_predictions
from vit_finetune.evaluation.soups import WISE_FT_ALPHAS, Blend, greedy_blend, wise_ft_blend

__all__ = [
    "METRICS",
    "WISE_FT_ALPHAS",
    "Blend",
    "EvalResult",
    "LabelledBatch",
    "Predictions",
    "check_output",
    "greedy_blend",
    "is_better",
    "mean_interval",
    "score",
    "wise_ft_blend",
    "write_evaluation",
    "write_predictions",
]
