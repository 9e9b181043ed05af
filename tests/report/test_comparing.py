"""Runs are compared on the same pictures, paired, and what was configured otherwise is listed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_helpers import add_pictures, softmax, write_run
from scipy import stats
from typer.testing import CliRunner

from vit_finetune import RequestError, compare_runs
from vit_finetune.cli import app
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.image_set import FileStore
from vit_finetune.data.manifest import write_manifest


def two_runs(folder: Path, *, lr: float = 1e-3) -> tuple[list[Path], np.ndarray, list[np.ndarray]]:
    """Return two runs on 120 pictures, the labels, and what each has right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    found = [softmax(skill * np.eye(3)[labels] + rng.normal(0, 1, (120, 3))) for skill in (0.8, 2.5)]
    runs = [
        write_run(folder / name, labels, probabilities, "abc", optimizer={"lr": rate})
        for name, probabilities, rate in zip(("plain", "tuned"), found, (1e-3, lr), strict=True)
    ]
    return runs, labels, [probabilities.argmax(axis=1) == labels for probabilities in found]


def test_compare__is_paired(tmp_path: Path) -> None:
    """Difference and p-value are of the pictures where the runs differ, as scipy's binomial test has them."""
    runs, labels, (first, second) = two_runs(tmp_path, lr=2e-3)
    comparison = compare_runs(runs)
    (difference,) = comparison.differences
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    assert (difference.only_baseline, difference.only_this) == alone
    assert difference.p_value == pytest.approx(stats.binomtest(alone[0], sum(alone)).pvalue)
    assert difference.difference == pytest.approx(second.mean() - first.mean())
    assert difference.low < difference.difference < difference.high
    assert "tuned is better than plain by" in difference.words
    changes = {str("abc"[k]): float(second[labels == k].mean() - first[labels == k].mean()) for k in range(3)}
    assert {name: value for name, value, _ in difference.classes} == pytest.approx(changes)
    assert comparison.settings == [("optimizer.lr", ["0.001", "0.002"])]
    assert compare_runs(runs[::-1]).differences[0].difference == pytest.approx(-difference.difference)


def test_compare__matches_pictures_by_their_bytes(tmp_path: Path) -> None:
    """Pictures are the same where their bytes and labels are, whatever their names and order; others are left out."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 40)
    probabilities = softmax(np.eye(3)[labels] + rng.normal(0, 1, (40, 3)))
    whole = write_run(tmp_path / "whole", labels, probabilities, "abc")
    files = add_pictures(whole, tmp_path / "set", labels, "abc")
    order = rng.permutation(40)[:25]
    part = write_run(tmp_path / "part", labels[order], probabilities[order], "abc", files=[f"{k}" for k in range(25)])
    kept = ImageSet(FileStore(Path("/"), tuple(files[k] for k in order)), labels[order])
    write_manifest(Splits(train=kept, val=kept, test=None, class_names=("a", "b", "c")), part / "manifest.parquet")
    comparison = compare_runs([whole, part])
    right = probabilities.argmax(axis=1) == labels
    assert comparison.num_common == 25
    assert [run.accuracy for run in comparison.runs] == pytest.approx([right[order].mean()] * 2)
    assert comparison.differences[0].difference == 0 and comparison.differences[0].p_value == 1
    with pytest.raises(RequestError, match="scored no picture in common"):
        compare_runs([whole, write_run(tmp_path / "other", labels, probabilities, "xyz")])


@pytest.mark.parametrize("number", [0, 1])
def test_compare__too_few_runs(tmp_path: Path, number: int) -> None:
    """A comparison needs two runs."""
    with pytest.raises(RequestError, match=f"at least two runs; got {number}"):
        compare_runs([tmp_path] * number)


def test_compare__verb(tmp_path: Path) -> None:
    """The verb prints a table, writes the page once, prints JSON, and refuses what cannot be compared in one line."""
    runs, _, _ = two_runs(tmp_path)
    page = tmp_path / "page.html"
    words = ["compare", *map(str, runs), "--output", str(page)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and page.is_file()
    assert "on the 120 pictures that all of them scored, against plain:" in done.stdout and "McNemar p" in done.stdout
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, RequestError) and "exists already" in str(again.exception)
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    told = json.loads(CliRunner().invoke(app, ["compare", *map(str, runs), "--json"]).stdout)
    assert told["num_common"] == 120 and len(told["differences"]) == 1
    (runs[1] / "predictions.parquet").unlink()
    with pytest.raises(RequestError, match="tuned has no predictions.parquet"):
        compare_runs(runs)
    with pytest.raises(RequestError, match="is given twice"):
        compare_runs([runs[0], runs[0]])
