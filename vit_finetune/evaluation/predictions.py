"""What a model says about pictures, and writing it as a table.

A table appears whole or not at all, and never in the place of an older one unasked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_file
from vit_finetune.evaluation.outputs import EvalResult
from vit_finetune.evaluation.tables import TABLE_SUFFIXES, check_table_place, write_table


@dataclass(frozen=True)
class Predictions:
    """What a model says about pictures.

    Attributes:
        class_names: K names, in the order of the columns of `probabilities`.
        labels: the most probable class name of each picture [n].
        probabilities: softmax outputs [n, K], float32; of a model for several classes a picture, sigmoid outputs.
        paths: the file of each picture [n]; None for one that came from memory.
        thresholds: [K], of a model for several classes a picture: it has a class from this probability on; else None.
        temperature: that logits were divided by, fitted on val or given; None where probabilities are as the network
            gives them.
        min_probability: below it the model abstains; None where it never does.
    """

    class_names: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: np.ndarray
    paths: tuple[str | None, ...]
    thresholds: tuple[float, ...] | None = None
    temperature: float | None = None
    min_probability: float | None = None

    @property
    def abstained(self) -> np.ndarray:
        """Return for each picture [n] whether the model is not sure enough to answer."""
        answered = self.probabilities.max(axis=1, initial=0.0) >= (self.min_probability or 0.0)
        return np.asarray(~answered)

    @property
    def label_sets(self) -> tuple[tuple[str, ...], ...]:
        """Return the class names of each picture [n]: several or none where the model is for that, else one."""
        if self.thresholds is None:
            return tuple((label,) for label in self.labels)
        return tuple(tuple(names) for names in named(self.probabilities >= self.thresholds, self.class_names))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """Return for each picture the `k` most probable classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [
            [(self.class_names[column], float(row[column])) for column in columns]
            for row, columns in zip(self.probabilities, order, strict=True)
        ]


def joined(parts: Sequence[Predictions], empty: Predictions) -> Predictions:
    """Return the predictions of parts, one after the other; `empty` where there is no part."""
    if not parts:
        return empty
    labels = tuple(chain.from_iterable(part.labels for part in parts))
    paths = tuple(chain.from_iterable(part.paths for part in parts))
    probabilities = np.concatenate([part.probabilities for part in parts])
    return replace(parts[0], labels=labels, paths=paths, probabilities=probabilities)


def write_predictions(
    predictions: Predictions | Iterable[Predictions], path: str | Path, *, top_k: int = 5, overwrite: bool = False
) -> Path:
    """Write predictions as CSV, parquet or JSON lines, whole or not at all.

    Args:
        predictions: what to write, a row a picture; or parts of it, such as `Predictor.stream` yields, each of which is
            written before the next is asked for.
        path: ends in .csv, .parquet or .jsonl.
        top_k: how many classes, best first, are listed for each picture; all where there are fewer.
        overwrite: replace an older file.

    Returns:
        `path`.

    Raises:
        RequestError: another ending, the file exists, or `top_k` is below 1.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    if top_k < 1:
        raise RequestError(f"top_k is {top_k}; give 1 or more")
    parts = [predictions] if isinstance(predictions, Predictions) else predictions
    write_table(path, (prediction_rows(part, top_k) for part in parts), empty=("path", "label", "probability"))
    return path


def prediction_rows(predictions: Predictions, top_k: int) -> list[dict[str, Any]]:
    """Return one mapping a picture: `path`, `label`, `probability`, and the next classes as `label_2`, ...

    Args:
        predictions: of any number of pictures.
        top_k: classes to list.
    """
    rows = []
    abstained = predictions.abstained
    for place, (name, label, best) in enumerate(
        zip(predictions.paths, predictions.labels, predictions.top(top_k), strict=True)
    ):
        row: dict[str, Any] = {"path": name, "label": label, "probability": best[0][1]}
        if predictions.min_probability is not None:
            row["abstained"] = bool(abstained[place])
        if predictions.thresholds is not None:
            row["labels"] = list(predictions.label_sets[place])
        for rank, (other, probability) in enumerate(best[1:], start=2):
            row |= {f"label_{rank}": other, f"probability_{rank}": probability}
        rows.append(row)
    return rows


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a place or an ending that predictions cannot be written to, before the work is done.

    Raises:
        RequestError: another ending than .csv, .parquet or .jsonl, or the file exists.
    """
    check_table_place(path, "predictions", TABLE_SUFFIXES, overwrite=overwrite)


def named(rows: np.ndarray, class_names: Sequence[str]) -> list[list[str]]:
    """Return the names of the classes that each row marks.

    Args:
        rows: [n, K], true for a class that is there.
        class_names: K names.
    """
    return [[class_names[column] for column in np.flatnonzero(row).tolist()] for row in rows]


def write_evaluation(
    path: Path,
    result: EvalResult,
    *,
    names: Sequence[str],
    split: str,
    class_names: Sequence[str],
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write what a model said about each picture of a split as parquet, in data set order.

    Args:
        path: the file; an older one is replaced.
        result: of `evaluation.score` with predictions kept.
        names: of the pictures of the split, in data set order.
        split: what the split is called.
        class_names: K names.
        thresholds: [K], of several classes a picture; labels and predictions are then lists.
    """
    labels: list[Any]
    predictions: list[Any]
    if thresholds is None:
        guesses = result.probabilities.argmax(axis=1)
        labels, predictions = ([class_names[int(place)] for place in places] for places in (result.labels, guesses))
    else:
        marks = result.probabilities >= np.asarray(thresholds)
        labels, predictions = named(result.labels, class_names), named(marks, class_names)
    columns = {
        "split": [split] * len(result.indices),
        "index": result.indices,
        "path": [names[index] for index in result.indices],
        "label": labels,
        "prediction": predictions,
        "correct": [label == guess for label, guess in zip(labels, predictions, strict=True)],
        "probability": result.probabilities.max(axis=1),
        "probabilities": list(result.probabilities),
    }
    with atomic_file(path) as temporary:
        parquet.write_table(pa.table(columns), temporary)
