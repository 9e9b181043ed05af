"""A finished model and pictures: figures for labelled ones, predictions for others (`predictor.py`).

`evaluate` takes what `Predictor` takes, and applies exactly the evaluation transform that the model was scored with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import ImageSet, decode_picture
from vit_finetune.data.corruptions import Corruption, over_corruptions
from vit_finetune.data.loader import eval_batches
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.evaluation import EvalResult, score
from vit_finetune.pictures import labelled_pictures, pictures_in
from vit_finetune.predictor import SOUP_FILE, FinishedRun, Predictor, model_source

if TYPE_CHECKING:
    from vit_finetune.pictures import Data, Picture
    from vit_finetune.predictor import Model

__all__ = [
    "SOUP_FILE",
    "FinishedRun",
    "Predictor",
    "evaluate",
    "evaluate_corrupted",
    "model_source",
    "picture_batches",
]


def picture_batches(
    images: Picture | Iterable[Picture], *, batch_size: int = 8
) -> Callable[[PreprocessSpec], Iterator[Tensor]]:
    """Return what makes batches of pictures for any preprocessing, to prove a conversion on.

    Args:
        images: as `Predictor` takes them.
        batch_size: pictures per batch.

    Returns:
        A function from a preprocessing to batches [B, C, H, W], each picture decoded when its batch is asked for.

    Raises:
        RequestError: there are no pictures; or, from the batches, one cannot be read.
    """
    pictures = list(pictures_in(images))
    if not pictures:
        raise RequestError("there are no pictures to compare on")

    def batches(spec: PreprocessSpec) -> Iterator[Tensor]:
        transform = build_eval_transform(spec)
        for start in range(0, len(pictures), batch_size):
            yield torch.stack([transform(decode_picture(item)) for item in pictures[start : start + batch_size]])

    return batches


def evaluate(
    run_or_model: Model,
    data: Data,
    *,
    split: str | None = None,
    predictor: Predictor | None = None,
) -> EvalResult:
    """Score a finished model on labelled pictures, each counted once.

    Args:
        run_or_model: what `Predictor` takes.
        data: a folder CLASS/picture (or SPLIT/CLASS/picture), a file that lists pictures, a data section, Splits, or
            an ImageSet.
        split: train, val or test, where `data` has several; None takes test if there is one, else val.
        predictor: use this one instead of loading `run_or_model`.

    Returns:
        The figures, and every picture's probabilities.

    Raises:
        RequestError: the pictures have a class that the model does not know, or no such split.
    """
    predictor = predictor or Predictor(run_or_model)
    return _score(predictor, labelled_pictures(data, split, predictor.class_names))


def evaluate_corrupted(
    run_or_model: Model,
    data: Data,
    *,
    split: str | None = None,
    seed: int = 0,
    predictor: Predictor | None = None,
) -> dict[str, Any]:
    """Score a finished model under blur, noise and JPEG at three strengths each.

    Args:
        run_or_model: what `Predictor` takes.
        data: what `evaluate` takes.
        split: train, val or test; None takes test if there is one, else val.
        seed: of the noise; a run's own check takes `run.seed`.
        predictor: use this one instead of loading `run_or_model`.

    Returns:
        `rows` of `corruption`, `severity` and the figures, and `mean`, each figure's mean over them.

    Raises:
        RequestError: the pictures have a class that the model does not know, or no such split.

    Source: 1903.12261; see data/corruptions.py for what differs.
    """
    predictor = predictor or Predictor(run_or_model)
    pictures = labelled_pictures(data, split, predictor.class_names)
    return over_corruptions(lambda corruption: _score(predictor, pictures, corruption, seed=seed).metrics)


def _score(
    predictor: Predictor, pictures: ImageSet, corruption: Corruption | None = None, *, seed: int = 0
) -> EvalResult:
    """Score a finished model on pictures, corrupted or as they are."""
    if pictures.is_multilabel != (predictor.thresholds is not None):
        model, data = ("one class", "lists of classes") if pictures.is_multilabel else ("several classes", "one each")
        raise RequestError(f"the model is for {model} a picture, and these pictures have {data}")
    batches = eval_batches(
        pictures,
        predictor.transform(corruption),
        batch_size=predictor.batch_size,
        seed=0 if corruption is None else corruption.seed(seed),
    )
    return score(
        predictor.network,
        batches,
        class_names=predictor.class_names,
        num_expected=len(pictures),
        device=predictor.device,
        keep_predictions=corruption is None,
        multilabel=pictures.is_multilabel,
        thresholds=predictor.thresholds,
    )
