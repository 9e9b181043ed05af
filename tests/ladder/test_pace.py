"""What a probe of a few steps tells about the machine, and that the probe sees all of train and a little of val."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_helpers import make_pictures

from vit_finetune.config import TrainConfig
from vit_finetune.data import load_splits
from vit_finetune.ladder.pace import Pace, pilot_splits, read_pilot

TRAIN = TrainConfig(global_batch_size=16, steps=1)


def write_probe(folder: Path, rows: list[dict[str, float]], sizes: tuple[int, ...] = ()) -> None:
    """Write what a probe leaves: its figures, and the steps at which pictures of another size begin."""
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "plan.json").write_text(json.dumps({"sizes": [{"first_step": start} for start in sizes]}))


def test_read_pilot__splits_a_run_into_its_parts(tmp_path: Path) -> None:
    """Of 12 s: steps count as their median without the first; scoring counts twice; the rest is overhead."""
    rows = [{"step": number, "seconds": value} for number, value in enumerate((5.0, 1.0, 2.0, 1.0), start=1)]
    rows.append({"step": 4, "evaluation_seconds": 0.5})
    write_probe(tmp_path, rows)
    pace = read_pilot(tmp_path, seconds=12.0, num_val=10, train=TRAIN)
    assert pace == Pace(overhead=2.0, forward=0.05, step=1.0)


def test_read_pilot__the_start_of_scoring_is_no_pictures_price(tmp_path: Path) -> None:
    """Three seconds to score ten pictures, at 0.1 s a picture in training: 0.1 s each, and the rest is overhead."""
    rows = [{"step": number, "seconds": 0.8} for number in range(1, 5)] + [{"step": 4, "evaluation_seconds": 3.0}]
    write_probe(tmp_path, rows)
    pace = read_pilot(tmp_path, seconds=12.0, num_val=10, train=TRAIN.model_copy(update={"global_batch_size": 8}))
    assert (pace.forward, pace.step) == (0.1, 0.8)
    assert pace.overhead == pytest.approx(12.0 - 4 * 0.8 - 2 * 10 * 0.1)


def test_read_pilot__small_pictures_first_take_their_share(tmp_path: Path) -> None:
    """Steps of 0.4 and 0.6 s at two smaller sizes, 1 s at the target: 0.7 of the steps take half of that."""
    seconds = (0.9, 0.4, 0.7, 0.6, 1.9, 1.0, 1.0, 1.0)
    write_probe(tmp_path, [{"step": 1, "seconds": value} for value in seconds], sizes=(0, 2, 4))
    pace = read_pilot(tmp_path, seconds=10.0, num_val=10, train=TRAIN)
    assert pace.step == 1.0
    assert pace.share == pytest.approx(0.65)
    assert pace.training(100, pictures_per_step=16, num_scored=0) == pytest.approx(1.15 * (pace.overhead + 65))


def test_pilot_splits__all_of_train_some_of_val(tmp_path: Path) -> None:
    """Steps are measured on all training pictures; of val at most 32 are scored, and test is not there."""
    make_pictures(tmp_path / "many", train=3, val=20)
    splits = load_splits(root=tmp_path / "many")
    few = pilot_splits(splits)
    assert few.val is not None
    assert (len(few.train), len(few.val), few.test) == (9, 32, None)
    assert splits.val is not None
    assert [few.val.name(index) for index in range(32)] == [splits.val.name(index) for index in range(32)]


def test_pace__seconds_add_up() -> None:
    """A training run is its overhead, its steps and its scoring, with 15 % kept back; so is scoring alone."""
    pace = Pace(overhead=2.0, forward=0.1, step=1.5)
    assert pace.training(10, pictures_per_step=8, num_scored=20) == pytest.approx(1.15 * (2 + 15 + 2))
    assert pace.scoring(20) == pytest.approx(1.15 * (2 + 2))
