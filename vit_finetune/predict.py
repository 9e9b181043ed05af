"""A finished model at work: predictions for pictures, figures for labelled ones.

`Predictor` and `evaluate` take a run, its model folder, its single safetensors file or a network in memory,
and apply exactly the evaluation transform that the model was scored with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import ImageSet, decode_picture, find_images
from vit_finetune.data.corruptions import Corruption, over_corruptions
from vit_finetune.data.loader import eval_batches
from vit_finetune.data.transforms import Transform, build_eval_transform
from vit_finetune.evaluation import EvalResult, Predictions, score
from vit_finetune.models import Backbone
from vit_finetune.pictures import labelled_pictures
from vit_finetune.weights import from_pretrained

SOUP_FILE = "soup.json"  # beside model/ in the folder of a blend of runs

if TYPE_CHECKING:
    from vit_finetune.pictures import Data

    Picture: TypeAlias = str | Path | Image.Image | np.ndarray
    Model: TypeAlias = "str | Path | Backbone | FinishedRun"


class FinishedRun(Protocol):
    """What `finetune` returns, as far as it matters here."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""


class Predictor:
    """Classifies pictures with a finished model.

    Args:
        run_or_model: a run's folder, a model folder, a safetensors file that describes itself, a RunResult,
            or a network (then `preprocess` and `class_names` are needed).
        preprocess: the evaluation transform; None takes the model's own.
        class_names: K names; None takes the model's own.
        device: cpu, cuda or mps; None takes an accelerator where there is one.
        batch_size: pictures per forward pass.
        thresholds: of a network for several classes a picture, the probability from which on it has each; None takes
            the model's own, if it has any.

    Raises:
        RequestError: there is no such model, or it does not say its classes or preprocessing.
    """

    def __init__(
        self,
        run_or_model: Model,
        *,
        preprocess: PreprocessSpec | None = None,
        class_names: Sequence[str] | None = None,
        device: str | None = None,
        batch_size: int = 32,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        if isinstance(run_or_model, Backbone):
            self.model, spec, names = run_or_model, preprocess, class_names
            found = None
        else:
            self.model, report = from_pretrained(model_source(run_or_model))
            spec, names = preprocess or report.preprocess, class_names or report.class_names
            found = report.thresholds
        if spec is None or names is None:
            missing = "preprocess" if spec is None else "class_names"
            raise RequestError(f"this model does not carry its {missing}; give {missing}=...")
        if len(names) != self.model.num_classes:
            raise RequestError(
                f"{len(names)} class names for a head of {self.model.num_classes} classes; give one each"
            )
        self.preprocess, self.class_names = spec, tuple(names)
        chosen = thresholds if thresholds is not None else found
        self.thresholds = None if chosen is None else tuple(chosen)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        self.model.to(self.device).eval()
        self._transform = self.transform()

    def transform(self, corruption: Corruption | None = None) -> Transform:
        """Return the evaluation transform of the model, with a corruption of the cropped picture where one is given."""
        return build_eval_transform(self.preprocess, corruption=corruption)

    def __call__(self, images: Picture | Iterable[Picture]) -> Predictions:
        """Classify pictures.

        Args:
            images: one or many of: path of a file or folder, PIL image, uint8 array [H, W, 3] or [H, W].

        Returns:
            The predictions, in the order of the pictures; a folder's in natural order.

        Raises:
            RequestError: a picture cannot be read; the message names it.
        """
        pictures = list(_pictures(images))
        rows = [
            self._probabilities(pictures[start : start + self.batch_size])
            for start in range(0, len(pictures), self.batch_size)
        ]
        probabilities = np.concatenate(rows) if rows else np.zeros((0, len(self.class_names)), dtype=np.float32)
        labels = tuple(self.class_names[column] for column in probabilities.argmax(axis=1))
        paths = tuple(str(item) if isinstance(item, Path) else None for item in pictures)
        return Predictions(self.class_names, labels, probabilities, paths, self.thresholds)

    @torch.inference_mode()
    def _probabilities(self, pictures: Sequence[Path | Image.Image]) -> np.ndarray:
        tensors: list[Tensor] = [self._transform(decode_picture(picture)) for picture in pictures]
        logits: Tensor = self.model(torch.stack(tensors).to(self.device))
        logits = logits.float()
        array: np.ndarray = (logits.softmax(dim=1) if self.thresholds is None else logits.sigmoid()).cpu().numpy()
        return array


def _pictures(images: Picture | Iterable[Picture]) -> Iterator[Path | Image.Image]:
    """Yield one entry a picture: folders are listed, arrays become images."""
    single = isinstance(images, (str, Path, Image.Image, np.ndarray))
    for item in [images] if single else images:  # type: ignore[union-attr]
        if isinstance(item, (str, Path)):
            yield from find_images([item])
        elif isinstance(item, Image.Image):
            yield item
        elif isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3):
            yield Image.fromarray(item)
        else:
            found = f"{item.dtype} array {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
            raise RequestError(f"cannot predict a {found}; give paths, PIL images or uint8 arrays [H, W, 3]")


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
    pictures = list(_pictures(images))
    if not pictures:
        raise RequestError("there are no pictures to compare on")

    def batches(spec: PreprocessSpec) -> Iterator[Tensor]:
        transform = build_eval_transform(spec)
        for start in range(0, len(pictures), batch_size):
            yield torch.stack([transform(decode_picture(item)) for item in pictures[start : start + batch_size]])

    return batches


def model_source(run_or_model: str | Path | FinishedRun) -> str:
    """Return what to load for a run's folder, a RunResult, or anything that `from_pretrained` takes.

    Raises:
        RequestError: a run's folder that holds no finished model yet.
    """
    if not isinstance(run_or_model, (str, Path)):
        run_or_model = run_or_model.run_dir
    path = Path(run_or_model)
    if not (path / "config.yaml").is_file() and not (path / SOUP_FILE).is_file():
        return str(run_or_model)
    if not (path / "model").is_dir():
        raise RequestError(
            f"{path} is a run without a finished model; go on with it: vit-finetune train {path} --resume"
        )
    return str(path / "model")


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
        predictor.model,
        batches,
        class_names=predictor.class_names,
        num_expected=len(pictures),
        device=predictor.device,
        keep_predictions=corruption is None,
        multilabel=pictures.is_multilabel,
        thresholds=predictor.thresholds,
    )
