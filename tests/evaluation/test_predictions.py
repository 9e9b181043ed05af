"""Predictions as tables: the same rows as CSV, JSON lines and parquet, whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation import EvalResult, Predictions, check_output, write_evaluation, write_predictions

NAMES = ("kauz", "milan", "Zaunkönig, klein")
PREDICTIONS = Predictions(
    class_names=NAMES,
    labels=("milan", "kauz", "Zaunkönig, klein"),
    probabilities=np.array([[0.25, 0.5, 0.25], [0.625, 0.25, 0.125], [0.125, 0.25, 0.625]], dtype=np.float32),
    paths=("a/1.png", "a/2, 3.png", None),
)
ROWS: list[dict[str, Any]] = [
    {
        "path": "a/1.png",
        "label": "milan",
        "probability": 0.5,
        "label_2": "kauz",  # as probable as the third: the earlier class comes first
        "probability_2": 0.25,
    },
    {
        "path": "a/2, 3.png",
        "label": "kauz",
        "probability": 0.625,
        "label_2": "milan",
        "probability_2": 0.25,
    },
    {
        "path": None,
        "label": "Zaunkönig, klein",
        "probability": 0.625,
        "label_2": "milan",
        "probability_2": 0.25,
    },
]


def read(path: Path) -> list[dict[str, Any]]:
    """Read a table with a reader that is not ours."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["path"] = row["path"] or None
        row |= {key: float(value) for key, value in row.items() if key.startswith("probability")}
    return rows


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_write_predictions__contents(tmp_path: Path, ending: str) -> None:
    """Every format holds the same rows: path, label and probability, then the next best; nothing is left beside it."""
    path = tmp_path / f"predictions{ending}"
    assert write_predictions(PREDICTIONS, str(path), top_k=2) == path
    assert read(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("top_k", "columns"), [(1, 1), (3, 3), (50, 3)])
def test_write_predictions__top_k(tmp_path: Path, top_k: int, columns: int) -> None:
    """As many classes as asked for are listed, at most all of them."""
    rows = read(write_predictions(PREDICTIONS, tmp_path / "a.jsonl", top_k=top_k))
    assert all(len([key for key in row if key.startswith("label")]) == columns for row in rows)


def test_write_predictions__top_k_below_one(tmp_path: Path) -> None:
    """No class at all is refused in one line, and nothing is written."""
    with pytest.raises(RequestError) as error:
        write_predictions(PREDICTIONS, tmp_path / "a.csv", top_k=0)
    assert str(error.value) == "top_k is 0; give 1 or more"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_write_predictions__no_pictures(tmp_path: Path, ending: str) -> None:
    """A table of no pictures can be written and read."""
    nothing = Predictions(NAMES, (), np.zeros((0, 3), dtype=np.float32), ())
    assert read(write_predictions(nothing, tmp_path / f"a{ending}")) == []
    assert len(nothing) == 0


@pytest.mark.parametrize(
    ("name", "told"), [("a.txt", ".txt"), ("a", "nothing"), ("a.csv.gz", ".gz"), ("a.CSV", ".CSV")]
)
def test_check_output__other_endings(tmp_path: Path, name: str, told: str) -> None:
    """An ending that we do not write is refused with those that we do."""
    with pytest.raises(RequestError) as error:
        check_output(tmp_path / name, overwrite=True)
    assert str(error.value) == (f"{tmp_path / name} ends in {told}; predictions are written as .csv, .parquet, .jsonl")


def test_write_predictions__existing_file(tmp_path: Path) -> None:
    """An older file is refused and kept, and replaced only when asked."""
    path = tmp_path / "a.jsonl"
    path.write_text("mine")
    with pytest.raises(RequestError) as error:
        write_predictions(PREDICTIONS, path)
    assert str(error.value) == f"{path} exists already; give another name or --overwrite"
    assert path.read_text() == "mine"
    write_predictions(PREDICTIONS, path, top_k=2, overwrite=True)
    assert read(path) == ROWS


def test_predictions__top() -> None:
    """The most probable classes come first; of equal ones, the earlier class."""
    assert PREDICTIONS.top(2)[0] == [("milan", 0.5), ("kauz", 0.25)]
    assert [len(best) for best in PREDICTIONS.top(9)] == [3, 3, 3]


def test_write_evaluation__contents(tmp_path: Path) -> None:
    """Each picture of a split has a row: where it is, what it is, what the model says and how sure it is."""
    probabilities = np.array([[0.5, 0.25, 0.25], [0.25, 0.125, 0.625]], dtype=np.float32)
    result = EvalResult({}, 2, [], np.array([0, 1]), np.array([0, 1]), probabilities)
    path = tmp_path / "predictions.parquet"
    write_evaluation(path, result, names=["x/a.png", "x/b.png"], split="val", class_names=NAMES)
    assert parquet.read_table(path).to_pylist() == [
        {
            "split": "val",
            "index": 0,
            "path": "x/a.png",
            "label": "kauz",
            "prediction": "kauz",
            "correct": True,
            "probability": 0.5,
            "probabilities": [0.5, 0.25, 0.25],
        },
        {
            "split": "val",
            "index": 1,
            "path": "x/b.png",
            "label": "milan",
            "prediction": "Zaunkönig, klein",
            "correct": False,
            "probability": 0.625,
            "probabilities": [0.25, 0.125, 0.625],
        },
    ]
