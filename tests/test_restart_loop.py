"""`train --resume` in a restart loop, and on another number of processes at each start."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import ROOT, everything, make_pictures, run_module, tiny_config
from warm_python import KILL, warm_python

pytestmark = pytest.mark.slow


def recipe_of(tmp_path: Path, name: str, **sections: Any) -> str:
    """Write the recipe of a run and return its file."""
    if not (tmp_path / "pictures").is_dir():
        make_pictures(tmp_path / "pictures", train=7, val=2)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "pictures", tmp_path / name, **sections)))
    return str(path)


def interrupted(recipe: str, run_dir: Path, *flags: str, rows: int, number: signal.Signals) -> int:
    """Start or go on with a run, send it a signal once its metrics.jsonl has so many rows, and return its exit code."""
    command = [warm_python(), "-m", "vit_finetune", "train", recipe, "--resume", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    journal, deadline = run_dir / "metrics.jsonl", time.monotonic() + 240
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= rows) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(KILL if number == signal.SIGKILL else number)
    return process.wait(timeout=240)


def losses(run_dir: Path) -> list[float]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "train"]


def test_train__restart_loop(tmp_path: Path) -> None:
    """The same command starts a run, goes on with it after a kill, and exits with 0 and changes nothing once done."""
    options: dict[str, Any] = {
        "train": {"steps": 8, "global_batch_size": 6},
        "checkpoint": {"every_epochs": 0.5, "asynchronous": True, "keep_last": 9},
    }
    recipe = recipe_of(tmp_path, "looped", **options)
    assert interrupted(recipe, tmp_path / "looped", rows=4, number=signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "looped" / "metrics.json").exists()
    assert run_module(["train", recipe, "--resume"]).returncode == 0
    done = everything(tmp_path / "looped")
    assert {name.split("/")[1] for name in done if name.startswith("checkpoints/step")} == {
        f"step-{step:08d}" for step in (2, 4, 6, 8)
    }
    again = run_module(["train", recipe, "--resume"])
    assert again.returncode == 0, again.stderr
    for name in ("metrics.jsonl", "metrics.json", "model/model.safetensors", "checkpoints/LATEST", "checkpoints/BEST"):
        assert (tmp_path / "looped" / name).read_bytes() == done[name]


def test_train__resumed_on_other_numbers_of_processes(tmp_path: Path) -> None:
    """50 steps on two processes, then three, then one: the undisturbed loss curve of one process to 1e-5."""
    options: dict[str, Any] = {
        "train": {"steps": 50, "global_batch_size": 6, "per_device_batch_size": 2},
        "evaluation": {"every_steps": 50},
        "checkpoint": {"every_steps": 5},
    }
    assert run_module(["train", recipe_of(tmp_path, "whole", **options)]).returncode == 0
    recipe, run_dir = recipe_of(tmp_path, "moved", **options), tmp_path / "moved"
    for processes, rows in ((2, 12), (3, 28)):
        code = interrupted(recipe, run_dir, "--num-processes", str(processes), rows=rows, number=signal.SIGTERM)
        assert code == 3
    assert 28 <= len(losses(run_dir)) < 50
    assert run_module(["train", recipe, "--resume"]).returncode == 0
    told = (run_dir / "run.log").read_text()
    assert "resume: 2 processes before, 3 now" in told
    assert "resume: 3 processes before, 1 now" in told
    assert losses(run_dir) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    assert len(losses(run_dir)) == 50
