"""Whatever ends a run, and wherever: it goes on from its newest whole checkpoint and ends as if nothing had been.

"As if nothing had been" is byte for byte: weights, optimizer, average, state, pointers and rows (see kill_driver.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_helpers import ROOT

from vit_finetune.common.errors import WorkError
from vit_finetune.training import checkpoint as store
from vit_finetune.training.journal import Journal

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the driver forks")
SIGKILL = -9


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what happened to each run of the driver, which imports everything once for all of them."""
    wanted = [
        {"asynchronous": False, "one_of_each": 0, "often": [[0, 4]], "sizes": [100, 100_000], "damage": [0, 1, 2, 3]},
        {"asynchronous": True, "one_of_each": 1, "often": [[1, 4]]},
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kill_driver.py"), str(tmp_path_factory.mktemp("k")), json.dumps(wanted)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def those(told: list[dict[str, Any]], how: str, *, asynchronous: bool = False) -> list[dict[str, Any]]:
    return [run for run in told if run["how"] == how and run["asynchronous"] == asynchronous]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_run__killed_at_points(told: list[dict[str, Any]], asynchronous: bool) -> None:
    """SIGKILL before and after writes, syncs, renames, removals, steps and evaluations, and in the middle of a file."""
    runs = those(told, "point", asynchronous=asynchronous)
    kinds = {run["what"] for run in runs}
    names = ("weights", "text", "fsync", "rename", "replace", "remove", "row", "step", "evaluation")
    assert kinds == {f"{when} {name}" for when in ("before", "after") for name in names} | {"inside weights"}
    assert [run["what"] for run in runs if not run["same"] or run["codes"][-1] != 0] == []
    assert all(code in (SIGKILL, 0) for run in runs for code in run["codes"])
    if not asynchronous:  # behind training, a point may come later than the end
        assert all(run["codes"] == [SIGKILL, 0] for run in runs)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_run__killed_again_and_again(told: list[dict[str, Any]], asynchronous: bool) -> None:
    """A run whose lives end four times at points that are drawn ends as the undisturbed one."""
    (run,) = those(told, "often", asynchronous=asynchronous)
    assert run["same"]
    assert run["codes"][-1] == 0
    assert SIGKILL in run["codes"]


def test_run__a_disk_that_fills(told: list[dict[str, Any]]) -> None:
    """A file that may not grow further ends the run with an error of ours; with room again, it goes on."""
    runs = those(told, "disk")
    assert [run["codes"] for run in runs] == [[1, 0]] * 2
    assert all(run["same"] for run in runs)


def test_run__damaged_files(told: list[dict[str, Any]]) -> None:
    """Files of the newest checkpoint flipped, cut or removed are named, and the one before is used."""
    runs = those(told, "damage")
    assert len(runs) == 4
    for run in runs:
        assert run["same"], run
        assert run["codes"] == [SIGKILL, 0]
        lines = [line for line in run["said"] if "is damaged" in line]
        assert len(lines) == 1
        assert lines[0].startswith("step-00000004 is damaged (")
        if "SHA256SUMS" not in run["what"]:  # harmed itself, it accuses others
            assert [name for name in run["what"].split() if name not in lines[0]] == []
        assert "resume: going on after step 2" in run["said"]


def test_save__a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that refuses to be written to is one clear error for each of the things that are written there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"step": 1})
    store.save_checkpoint(tmp_path, step=1, model={}, optimizer={}, state={})
    store.save_checkpoint(tmp_path, step=2, model={}, optimizer={}, state={})
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    monkeypatch.setattr("os.open", refuse)
    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(WorkError, match=r"cannot write the checkpoint .*step-00000003: .*Read-only file system"):
        store.save_checkpoint(tmp_path, step=3, model={}, optimizer={}, state={})
    with pytest.raises(WorkError, match=r"cannot remove the checkpoint .*step-00000001: .*Read-only file system"):
        store.remove_old(tmp_path, keep_last=1)
    for work in (lambda: journal.cut(0), journal.sync):
        with pytest.raises(WorkError, match=r"cannot write .*metrics\.jsonl: .*Read-only file system"):
            work()
    monkeypatch.undo()
    assert store.newest_whole(tmp_path) == (2, [])
    assert journal.rows() == [{"step": 1}]
