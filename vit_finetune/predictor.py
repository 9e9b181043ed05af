"""A finished model at work on pictures without labels: predictions, features, and knowing when to abstain.

`Predictor` takes a run, its model folder, its single safetensors file or a network in memory, and applies exactly the
evaluation transform that the model was scored with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import decode_picture
from vit_finetune.data.corruptions import Corruption
from vit_finetune.data.transforms import Transform, build_eval_transform
from vit_finetune.evaluation import Predictions
from vit_finetune.evaluation.predictions import joined
from vit_finetune.models import Backbone, MergedTokens
from vit_finetune.pictures import pictures_in
from vit_finetune.weights import from_pretrained

SOUP_FILE = "soup.json"  # beside model/ in the folder of a blend of runs

if TYPE_CHECKING:
    from vit_finetune.pictures import Picture

    Model: TypeAlias = "str | Path | Backbone | FinishedRun"


class FinishedRun(Protocol):
    """What `finetune` returns, as far as it matters here."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""


def _check_numbers(temperature: float | None, min_probability: float | None, *, several: bool) -> None:
    """Refuse what a person gave out of range, or to a network for several classes a picture."""
    if several and (temperature, min_probability) != (None, None):
        raise RequestError(
            "a temperature or a least probability is for one class a picture; this model is for several (thresholds)"
        )
    if temperature is not None and not 0 < temperature < math.inf:
        raise RequestError(f"the temperature is {temperature}; give a number above 0, such as 1 for raw probabilities")
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise RequestError(f"the least probability is {min_probability}; give a number from 0 to 1")


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
        temperature: what logits are divided by; None takes the one that the run fitted on val, if it did, so that
            probabilities are calibrated; 1 gives raw ones. The first guess is the same at any.
        min_probability: below it the model abstains (see `Predictions.abstained` and `choose_threshold`); in [0, 1].
        merge_tokens: patches that become one in each block of a plain ViT (token merging, arXiv 2210.09461): faster,
            and not the same logits; 0 merges none.

    Raises:
        RequestError: there is no such model, it does not say its classes or preprocessing, or a number is out of range
            or given to a network for several classes a picture, or its tokens cannot be merged.
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
        temperature: float | None = None,
        min_probability: float | None = None,
        merge_tokens: int = 0,
    ) -> None:
        if isinstance(run_or_model, Backbone):
            self.model, spec, names = run_or_model, preprocess, class_names
            found, fitted = None, None
        else:
            self.model, report = from_pretrained(model_source(run_or_model))
            spec, names = preprocess or report.preprocess, class_names or report.class_names
            found, fitted = report.thresholds, report.temperature
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
        _check_numbers(temperature, min_probability, several=chosen is not None)
        self.temperature = temperature if temperature is not None else fitted
        self.min_probability = min_probability
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = batch_size
        self.model.to(self.device).eval()
        self.network: Backbone | MergedTokens = (
            self.model if merge_tokens == 0 else MergedTokens(self.model, merge_tokens)
        )
        self._transform = self.transform()

    def transform(self, corruption: Corruption | None = None) -> Transform:
        """Return the evaluation transform of the model, with a corruption of the cropped picture where one is given."""
        return build_eval_transform(self.preprocess, corruption=corruption)

    @property
    def is_calibrated(self) -> bool:
        """Whether probabilities are at a temperature of their own rather than as the network gives them."""
        return self.temperature not in (None, 1.0)

    def __call__(self, images: Picture | Iterable[Picture]) -> Predictions:
        """Classify pictures.

        Args:
            images: one or many of: path of a file or folder, PIL image, uint8 array [H, W, 3] or [H, W].

        Returns:
            The predictions, in the order of the pictures; a folder's in natural order.

        Raises:
            RequestError: a picture cannot be read; the message names it.
        """
        return joined(list(self.stream(images)), self._predictions(np.zeros((0, len(self.class_names))), ()))

    def stream(self, images: Picture | Iterable[Picture]) -> Iterator[Predictions]:
        """Classify any number of pictures, `batch_size` of which are in memory at a time.

        Args:
            images: what a call takes; an iterator is read as far as the next batch needs.

        Yields:
            The predictions of up to `batch_size` pictures, in order.

        Raises:
            RequestError: a picture cannot be read; the message names it.
        """
        for pictures in batched(pictures_in(images), self.batch_size):
            logits = self._run(pictures, self.network)
            yield self._predictions(logits, tuple(str(item) if isinstance(item, Path) else None for item in pictures))

    def embed(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Return what the head would see of pictures: features for retrieval, clustering or another classifier.

        Args:
            images: what a call takes.

        Returns:
            float32 [n, D], not normalised; cosine similarity is the usual measure between rows.

        Raises:
            RequestError: a picture cannot be read; the message names it.
        """
        rows = [features for _, features in self.stream_features(images)]
        return np.concatenate(rows) if rows else np.zeros((0, self.model.embed_dim), dtype=np.float32)

    def stream_features(
        self, images: Picture | Iterable[Picture]
    ) -> Iterator[tuple[tuple[str | None, ...], np.ndarray]]:
        """Yield the files (None for a picture from memory) and features [b, D] of up to `batch_size` pictures each.

        Args:
            images: what a call takes.

        Raises:
            RequestError: a picture cannot be read; the message names it.
        """

        def features(pixels: Tensor) -> Tensor:
            return self.network.forward_head(self.network.forward_features(pixels), pre_logits=True)

        for pictures in batched(pictures_in(images), self.batch_size):
            paths = tuple(str(item) if isinstance(item, Path) else None for item in pictures)
            yield paths, self._run(pictures, features)

    @torch.inference_mode()
    def _run(self, pictures: Sequence[Path | Image.Image], network: Callable[[Tensor], Tensor]) -> np.ndarray:
        """Return what a network gives for pictures, float32 on the CPU."""
        out: np.ndarray = network(self.pixels(pictures)).float().cpu().numpy()
        return out

    def pixels(self, pictures: Sequence[Path | Image.Image]) -> Tensor:
        """Return pictures as the network takes them, [b, C, H, W] on its device.

        Args:
            pictures: at least one.

        Raises:
            RequestError: a picture cannot be read; the message names it.
        """
        tensors: list[Tensor] = [self._transform(decode_picture(picture)) for picture in pictures]
        return torch.stack(tensors).to(self.device)

    def _predictions(self, logits: np.ndarray, paths: tuple[str | None, ...]) -> Predictions:
        """Return logits [n, K] as predictions: the first guess is of the logits, so no temperature changes it."""
        values = torch.from_numpy(logits)
        probabilities = (values / (self.temperature or 1.0)).softmax(dim=1)
        if self.thresholds is not None:
            probabilities = values.sigmoid()
        labels = tuple(self.class_names[column] for column in logits.argmax(axis=1))
        found = Predictions(self.class_names, labels, probabilities.float().numpy(), paths, self.thresholds)
        return replace(found, temperature=self.temperature, min_probability=self.min_probability)


def batched(items: Iterator[Path | Image.Image], size: int) -> Iterator[list[Path | Image.Image]]:
    """Yield `size` items at a time, the last time what is left."""
    while batch := list(islice(items, size)):
        yield batch


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
