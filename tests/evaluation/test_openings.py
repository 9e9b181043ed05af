"""Every scoring of a run's test split is counted, wherever it comes from and however many come at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from run_helpers import make_pictures, tiny_config
from typer.testing import CliRunner

from vit_finetune import finetune
from vit_finetune.cli import app
from vit_finetune.common.errors import WorkError
from vit_finetune.evaluation import note_opening, num_openings, opening_lines


def test_note_opening__loses_none_of_many_at_once(tmp_path: Path) -> None:
    """Forty openers at once leave forty whole lines."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: note_opening(tmp_path, command="evaluate", metrics={"accuracy": 0.5}), range(40)))
    rows = [json.loads(line) for line in (tmp_path / "test_openings.jsonl").read_text().splitlines()]
    assert num_openings(tmp_path) == len(rows) == 40
    assert all((row["command"], row["accuracy"]) == ("evaluate", 0.5) for row in rows)


def test_opening_lines__nothing_to_tell(tmp_path: Path) -> None:
    """A run without a test split says nothing about it; where the line cannot be written, that is an error."""
    assert opening_lines(tmp_path) == []
    with pytest.raises(WorkError, match="must be noted"):
        note_opening(tmp_path / "gone", command="train", metrics={})


def test_run__counts_who_opens_the_test_split(tmp_path: Path) -> None:
    """The run opens test once, `evaluate` on the run again; scoring val or other pictures adds nothing."""
    root, run_dir = make_pictures(tmp_path / "pictures", train=4, val=2), tmp_path / "run"
    train = {"steps": 2, "global_batch_size": 6, "per_device_batch_size": 6}
    finetune(tiny_config(root, run_dir, train=train, data={"test_fraction": 0.25}))
    assert json.loads((run_dir / "metrics.json").read_text())["num_test_openings"] == 1
    for arguments, count in (([], 2), (["--split", "val"], 2), ([str(root)], 2), (["--split", "test", "--json"], 3)):
        done = CliRunner().invoke(app, ["evaluate", str(run_dir), *arguments])
        assert done.exit_code == 0, done.output
        assert num_openings(run_dir) == count
        assert ("opened 2 times" in done.output) == (not arguments)
    assert json.loads(done.output)["num_test_openings"] == 3
    rows = [json.loads(line) for line in (run_dir / "test_openings.jsonl").read_text().splitlines()]
    assert [row["command"] for row in rows] == ["train", "evaluate", "evaluate"]
    assert len({row["accuracy"] for row in rows}) == 1
