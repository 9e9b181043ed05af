"""Runs are compared on the same pictures, paired, and what was configured otherwise is listed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_helpers import add_pictures, softmax, write_run
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score
from typer.testing import CliRunner

from vit_finetune import RequestError, compare_runs
from vit_finetune.cli import app
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.image_set import FileStore
from vit_finetune.data.manifest import write_manifest
from vit_finetune.report import comparison_lines, write_comparison


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


def test_compare__several_classes_a_picture(tmp_path: Path) -> None:
    """Ranking, F1 and exact matches are scikit-learn's on the common pictures, whatever the order of the classes."""
    rng = np.random.default_rng(2)
    labels = (rng.random((160, 4)) < 0.35).astype(np.uint8)
    labels[:, 3] = 0
    found = [np.clip(skill * labels + rng.random((160, 4)), 0, 1.2).astype(np.float32) / 1.2 for skill in (0.1, 0.5)]
    first = write_run(tmp_path / "first", labels, found[0], "abcd")
    order, columns = rng.permutation(160)[:140], [2, 0, 3, 1]
    files = [f"pictures/val/{index}.png" for index in order]
    shuffled = [values[np.ix_(order, columns)] for values in (labels, found[1])]
    second = write_run(tmp_path / "second", *shuffled, "cadb", files=files)
    comparison = compare_runs([first, second])
    (difference,) = comparison.differences
    assert comparison.num_common == 140 and comparison.class_figure == "average precision"
    kept = np.sort(order)
    cuts = []
    for run in (first, second):
        rows = json.loads((run / "metrics.json").read_text())["per_class"]
        by_name = {row["class"]: row["threshold"] for row in rows}
        cuts.append([by_name[name] for name in "abcd"])
    marks = [values[kept] >= cut for values, cut in zip(found, cuts, strict=True)]
    ranked = [[average_precision_score(labels[kept, k], values[kept, k]) for k in range(3)] for values in found]
    told = {change.key: change for change in difference.figures}
    assert told["mean_average_precision"].difference == pytest.approx(np.mean(ranked[1]) - np.mean(ranked[0]))
    for average, shown in (("macro", slice(3)), ("micro", slice(4))):
        scores = [f1_score(labels[kept][:, shown], part[:, shown], average=average) for part in marks]
        assert told[f"{average}_f1"].difference == pytest.approx(scores[1] - scores[0])
    exact = [float((part == labels[kept]).all(axis=1).mean()) for part in marks]
    assert [run.accuracy for run in comparison.runs] == pytest.approx(exact)
    changes = {"abc"[k]: ranked[1][k] - ranked[0][k] for k in range(3)}
    assert {name: value for name, value, _ in difference.classes} == pytest.approx(changes)
    assert all(change.low < change.difference < change.high for change in difference.figures)
    assert "second is better than first by" in difference.words and "mean average precision" in difference.words
    text = write_comparison(comparison, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "exact matches" in text and "difference of average precision" in text
    assert any("macro-F1 +" in line for line in comparison_lines(comparison))


def test_compare__runs_of_other_kinds(tmp_path: Path) -> None:
    """Runs of one and of several classes, or of several that are not the same, are refused with their names."""
    several = np.eye(3, dtype=np.uint8)
    one = write_run(tmp_path / "one", np.arange(3), softmax(np.eye(3)), "abc")
    many = write_run(tmp_path / "many", several, softmax(np.eye(3)), "abc")
    with pytest.raises(RequestError, match="many is for several classes a picture and .*one for one"):
        compare_runs([one, many])
    with pytest.raises(RequestError, match=r"know different classes \(c, x, \.\.\.\)"):
        compare_runs([many, write_run(tmp_path / "others", several, softmax(np.eye(3)), "abx")])


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
