"""Pictures that cannot be read: left out, counted and listed, the same on one process, on two, and after a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from run_helpers import make_pictures, run_module, tiny_config

from vit_finetune import finetune
from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.config import Config
from vit_finetune.data import load_splits
from vit_finetune.data.order import global_batch, rank_part

NUM_TRAIN, NUM_VAL, BATCH, STEPS = 12, 9, 4, 8
SKIP = {"on_bad_image": "skip", "max_bad_fraction": 0.5}


def lonely_pair() -> list[int]:
    """Return what the second of two processes is given in some step: two pictures."""
    part = rank_part(BATCH, 1, 2)
    return global_batch(3, seed=0, num_samples=NUM_TRAIN, global_batch_size=BATCH)[1][part].tolist()


@pytest.fixture(scope="module")
def bad_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pictures of which three of train and one of val break off, and one of train is empty.

    Two of them are all that the second of two processes is given in step 3.
    """
    root = make_pictures(tmp_path_factory.mktemp("bad") / "pictures", train=NUM_TRAIN // 3, val=NUM_VAL // 3)
    splits = load_splits(root=root)
    indices = sorted({*lonely_pair(), 0, 5})
    for index in indices:
        path = Path(splits.train.name(index))
        path.write_bytes(path.read_bytes()[:3000])
    Path(splits.train.name(indices[-1])).write_bytes(b"")
    path = Path(splits.val.name(4)) if splits.val is not None else Path()
    path.write_bytes(path.read_bytes()[:3000])
    return root


def recipe(root: Path, run_dir: Path, **data: Any) -> dict[str, Any]:
    """Return a run of eight steps of four pictures."""
    train = {"steps": STEPS, "global_batch_size": BATCH, "per_device_batch_size": 2}
    return tiny_config(root, run_dir, train=train, data={**SKIP, **data})


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def skipped_run(bad_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that leaves bad pictures out and lays copies of them aside."""
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    finetune(recipe(bad_root, run_dir, on_bad_image="quarantine"))
    return run_dir


def test_finetune__lists_counts_and_copies_what_it_left_out(skipped_run: Path, bad_root: Path) -> None:
    """Each bad picture stands once in the list with its reason; the denominator is what could be read."""
    rows = lines(skipped_run / "bad_images.jsonl")
    splits = load_splits(root=bad_root)
    found = sorted((row["split"], row["index"]) for row in rows)
    assert found == sorted([("val", 4), *(("train", index) for index in {*lonely_pair(), 0, 5})])
    assert all(row["name"] in row["reason"] and "cannot read" in row["reason"] for row in rows)
    figures = json.loads((skipped_run / "metrics.json").read_text())
    assert (figures["num_samples"], figures["num_skipped"]) == (NUM_VAL - 1, 1)
    assert sum(row["num_samples"] for row in figures["per_class"]) == NUM_VAL - 1
    for row in rows:
        original = Path((splits.train if row["split"] == "train" else splits.val).name(row["index"]))  # type: ignore[union-attr]
        assert (skipped_run / row["copy"]).read_bytes() == original.read_bytes()
    log = (skipped_run / "run.log").read_text()
    assert f"{len(found) - 1} of 12 train, 1 of 9 val pictures cannot be read" in log


def test_finetune__resume_with_bad_pictures_is_bit_identical(skipped_run: Path, bad_root: Path, tmp_path: Path) -> None:
    """A run whose last half is lost and done again ends with the same weights, figures and list."""
    copy = tmp_path / "again"
    shutil.copytree(skipped_run, copy)
    settings = recipe(bad_root, copy, on_bad_image="quarantine")
    (copy / "config.yaml").write_text(Config.load(settings).to_yaml())
    for gone in (copy / "checkpoints").glob("step-*8"):
        shutil.rmtree(gone)
    (copy / "checkpoints" / "LATEST").write_text("step-00000004")
    (copy / "checkpoints" / "BEST").write_text("step-00000004")
    (copy / "metrics.json").unlink()
    shutil.rmtree(copy / "model")
    finetune(settings, resume=True)
    for name in ("metrics.jsonl", "bad_images.jsonl", "checkpoints/step-00000008/optimizer.safetensors"):
        assert (copy / name).read_bytes() == (skipped_run / name).read_bytes(), name


@pytest.mark.slow
def test_finetune__two_processes_leave_out_the_same(skipped_run: Path, bad_root: Path, tmp_path: Path) -> None:
    """Two processes agree with one, also in a step in which the second has no picture left."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(bad_root, tmp_path / "two")))
    done = run_module(["train", str(file), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    one, two = (lines(run / "metrics.jsonl") for run in (skipped_run, tmp_path / "two"))
    np.testing.assert_allclose([row["loss"] for row in two], [row["loss"] for row in one], atol=1e-5)
    counted = [json.loads((run / "metrics.json").read_text()) for run in (skipped_run, tmp_path / "two")]
    for name in ("num_samples", "num_skipped", "per_class"):
        assert counted[0][name] == counted[1][name]
    listed = [
        [{**row, "copy": None} for row in lines(run / "bad_images.jsonl")] for run in (skipped_run, tmp_path / "two")
    ]
    assert listed[0] == listed[1]


def test_finetune__stops_over_the_budget(bad_root: Path, tmp_path: Path) -> None:
    """More bad pictures than allowed end the run with the share, the split and the file that lists them."""
    with pytest.raises(WorkError, match=r"3 of 12 train pictures cannot be read, more than data.max_bad_fraction 0.2"):
        finetune(recipe(bad_root, tmp_path / "run", max_bad_fraction=0.2))
    assert len(lines(tmp_path / "run" / "bad_images.jsonl")) >= 3


def test_finetune__a_bad_header_over_the_budget_writes_nothing(bad_root: Path, tmp_path: Path) -> None:
    """What is seen to be bad before the first step is refused there."""
    with pytest.raises(RequestError, match="max_bad_fraction 0.05 allows no more"):
        finetune(recipe(bad_root, tmp_path / "run", max_bad_fraction=0.05))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "changes"), [("tuning", {"mode": "readout"}), ("train", {"budget": "1m", "steps": None})]
)
def test_config__what_needs_every_picture_refuses_to_skip(section: str, changes: dict[str, Any]) -> None:
    """Modes that do not know how to leave pictures out say so instead of doing something else."""
    values = recipe(Path("x"), Path("y"))
    values[section] = {**values.get(section, {}), **changes}
    with pytest.raises(RequestError, match="on_bad_image skip does not work with"):
        Config.load(values)
