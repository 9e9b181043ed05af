"""A finished model that answers only where it is sure: the threshold from val, its worth on held-out pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_finetune.common.errors import RequestError
from vit_finetune.data import Splits
from vit_finetune.evaluation import EvalResult, rescale
from vit_finetune.evaluation.selective import auroc, choose_threshold, selection_at
from vit_finetune.pictures import run_splits
from vit_finetune.predict import Predictor, evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vit_finetune.pictures import Data, Picture


def sureness(result: EvalResult, predictor: Predictor) -> tuple[np.ndarray, np.ndarray]:
    """Return for scored pictures [n] the probability of the first guess, calibrated where the model is, and if right.

    Args:
        result: of `evaluate`.
        predictor: that it was scored with.
    """
    probabilities = rescale(result.probabilities, predictor.temperature or 1.0)
    return probabilities.max(axis=1), result.probabilities.argmax(axis=1) == result.labels


def threshold_for(predictor: Predictor, run: str, *, max_risk: float) -> float:
    """Return the least probability that keeps a risk on the val split of a run.

    Args:
        predictor: of the run.
        run: its folder; its pictures must still be there.
        max_risk: the share of answers that may be wrong, in [0, 1).

    Raises:
        RequestError: this is no run with a val split, the model is for several classes a picture, or no threshold
            keeps the risk.
    """
    if predictor.thresholds is not None:
        raise RequestError("abstaining is for one class a picture; a model for several has a threshold for each class")
    splits = run_splits(run)
    if splits.val is None:
        raise RequestError(f"{run} has no val split to choose a threshold on; give --min-probability")
    confidence, right = sureness(evaluate(run, splits, split="val", predictor=predictor), predictor)
    chosen = choose_threshold(confidence, right, max_risk=max_risk)
    if chosen > confidence.max():
        raise RequestError(
            f"no threshold keeps the risk on val at {max_risk:g}: the surest of {len(confidence)} guesses is wrong; "
            "allow more risk or train a better model"
        )
    return chosen


def abstention(
    predictor: Predictor,
    data: Data,
    *,
    min_probability: float,
    split: str | None = None,
    foreign: Picture | Iterable[Picture] | None = None,
    result: EvalResult | None = None,
) -> dict[str, Any]:
    """Return how a model does that abstains below a probability.

    Args:
        predictor: of one class a picture.
        data: labelled pictures, as `evaluate` takes them; others than chose the threshold.
        min_probability: below it the model abstains.
        split: as `evaluate` takes it.
        foreign: pictures of none of the classes.
        result: what `evaluate` said about these pictures, where it was asked; None asks it.

    Returns:
        The fields of `selective.Selection`; `chosen_here`, whether these are the pictures that choose the threshold
        of a run, which flatters; with foreign pictures also `auroc_foreign`, how well the probability
        tells them from the others, `foreign_answered`, the share of them that is answered, and `num_foreign`.

    Raises:
        RequestError: the pictures are not what they must be.
    """
    scored = result or evaluate(predictor.model, data, split=split, predictor=predictor)
    confidence, right = sureness(scored, predictor)
    told: dict[str, Any] = asdict(selection_at(min_probability, confidence, right))
    told["chosen_here"] = isinstance(data, Splits) and (split or ("val" if data.test is None else "test")) == "val"
    if foreign is not None:
        others = np.concatenate([part.probabilities.max(axis=1) for part in predictor.stream(foreign)])
        told["auroc_foreign"] = auroc(confidence, others)
        told["foreign_answered"] = float((others >= min_probability).mean())
        told["num_foreign"] = len(others)
    return told
