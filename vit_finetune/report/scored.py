"""predictions.parquet as arrays: what the model said about each picture, read batch by batch.

Of one class a picture only a few numbers are kept for each, so 100,000 pictures of 1,000 classes take megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.calibration import rescale

_COLUMNS = ["index", "path", "label", "prediction", "probability", "probabilities"]
_VALUES_AT_ONCE = 1 << 22  # probabilities in memory at a time


@dataclass(frozen=True, eq=False)
class Scored:
    """Pictures of one class each.

    Attributes:
        class_names: K names.
        indices: places in the split [n].
        paths: what each picture is called [n].
        labels: the true class [n].
        guesses: the most probable class [n].
        confidence: its probability [n].
        margin: by how much that is above the second most probable [n].
        scaled: its probability after the temperature [n]; None without one.
    """

    class_names: tuple[str, ...]
    indices: NDArray[np.int64]
    paths: NDArray[np.object_]
    labels: NDArray[np.int64]
    guesses: NDArray[np.int64]
    confidence: NDArray[np.float64]
    margin: NDArray[np.float64]
    scaled: NDArray[np.float64] | None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the guess is the true class [n]."""
        found: NDArray[np.bool_] = self.labels == self.guesses
        return found

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ScoredSets:
    """Pictures of any number of classes each.

    Attributes:
        class_names: K names.
        indices: places in the split [n].
        paths: what each picture is called [n].
        labels: 1 for a class that a picture has [n, K].
        probabilities: [n, K].
    """

    class_names: tuple[str, ...]
    indices: NDArray[np.int64]
    paths: NDArray[np.object_]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)


S = TypeVar("S", bound=Scored | ScoredSets)


def at_rows(scored: S, rows: NDArray[np.int64]) -> S:
    """Return some of the pictures.

    Args:
        scored: all of them.
        rows: those that are wanted, in the order wanted.
    """
    columns = {item.name: getattr(scored, item.name) for item in fields(scored)}
    kept: dict[str, Any] = {name: value[rows] for name, value in columns.items() if isinstance(value, np.ndarray)}
    return replace(scored, **kept)


def read_scored(path: Path, class_names: Sequence[str], *, temperature: float | None = None) -> Scored:
    """Read predictions of one class a picture.

    Args:
        path: predictions.parquet.
        class_names: K names, in the order of the probabilities.
        temperature: divides the logits for `scaled`; None leaves that out.

    Raises:
        RequestError: the file is damaged, or of other classes.
    """
    parts: list[tuple[NDArray[np.generic], ...]] = []
    for batch, probabilities in _batches(path, class_names):
        rows = np.arange(len(batch))
        guesses = _numbers(batch["prediction"], class_names, path)
        two = (
            np.partition(probabilities, -2, axis=1)[:, -2:] if probabilities.shape[1] > 1 else probabilities[:, [0, 0]]
        )
        scaled = np.zeros(len(batch)) if temperature is None else rescale(probabilities, temperature)[rows, guesses]
        parts.append(
            (
                batch["index"].to_numpy().astype(np.int64),
                batch["path"].to_numpy(zero_copy_only=False),
                _numbers(batch["label"], class_names, path),
                guesses,
                probabilities[rows, guesses].astype(np.float64),
                (two[:, 1] - two[:, 0]).astype(np.float64),
                scaled.astype(np.float64),
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    indices, paths, labels, chosen, confidence, margin, at_temperature = columns
    known = None if temperature is None else at_temperature
    return Scored(tuple(class_names), indices, paths, labels, chosen, confidence, margin, known)


def read_scored_sets(path: Path, class_names: Sequence[str]) -> ScoredSets:
    """Read predictions of any number of classes a picture.

    Args:
        path: predictions.parquet.
        class_names: K names, in the order of the probabilities.

    Raises:
        RequestError: the file is damaged, or of other classes.
    """
    parts = []
    for batch, probabilities in _batches(path, class_names):
        lists = batch["label"]
        labels = np.zeros(probabilities.shape, dtype=np.uint8)
        rows = np.repeat(np.arange(len(batch)), pc.list_value_length(lists).to_numpy())
        labels[rows, _numbers(lists.flatten(), class_names, path)] = 1
        paths = batch["path"].to_numpy(zero_copy_only=False)
        parts.append((batch["index"].to_numpy().astype(np.int64), paths, labels, probabilities))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return ScoredSets(tuple(class_names), *columns)


def _batches(path: Path, class_names: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    """Yield rows with their probabilities [rows, K]; at least one batch, which may be empty."""
    size = max(1, _VALUES_AT_ONCE // max(1, len(class_names)))
    is_empty = True
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=size, columns=_COLUMNS):
                values = batch["probabilities"].flatten().to_numpy().astype(np.float32, copy=False)
                if len(values) != len(batch) * len(class_names):
                    raise _other_classes(path)
                is_empty = False
                yield batch, values.reshape(len(batch), len(class_names))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    if is_empty:
        raise RequestError(f"{path} lists no pictures")


def _numbers(names: pa.Array, class_names: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Return the number of each class name."""
    found = pc.index_in(names, value_set=pa.array(class_names, type=names.type))
    if found.null_count:
        raise _other_classes(path)
    numbers: NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return numbers


def _other_classes(path: Path) -> RequestError:
    return RequestError(f"{path} is not of the classes in metrics.json; both belong to one run, so run it again")
