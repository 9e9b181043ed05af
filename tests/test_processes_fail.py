"""One of two processes dies or raises: both end in time, not with exit code 0, and the reason is told once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_helpers import ROOT, make_pictures, tiny_config

from vit_finetune.common.errors import RequestError, RunStopped, WorkError
from vit_finetune.training.launch import _first_cause, report_failure, with_rank

IN_TIME = 40.0  # as docs/several_machines.md says
PATIENCE = 400.0  # until two processes have begun, on a busy machine

# Imported by every interpreter at its start: the process of rank 1 has a fault in its third step.
FAULT = """
import os
if os.environ.get("RANK") == "1":
    from vit_finetune.training import loop
    step = loop._Loop.train_step
    def faulty(self, micro_batches):
        if self.at.step == 2:
            open(os.environ["FAULT_BEGAN"], "w").close()
            raise {error}
        return step(self, micro_batches)
    loop._Loop.train_step = faulty
"""


def start(tmp_path: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a long run on two processes."""
    root = make_pictures(tmp_path / "pictures", train=4, val=1)
    train = {"steps": 100_000, "global_batch_size": 6, "per_device_batch_size": 3}
    config = tiny_config(root, tmp_path / "run", train=train, evaluation={"every_steps": 100_000})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "vit_finetune", "train", str(tmp_path / "recipe.yaml"), "--num-processes", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )


def wait_for_steps(tmp_path: Path, process: subprocess.Popen[str], number: int) -> None:
    """Wait until a run has done some steps."""
    journal, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (journal.is_file() and journal.read_text().count("\n") >= number):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the run does not start: {process.communicate()[1]}")
        time.sleep(0.02)


@pytest.mark.slow
def test_launch__one_process_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the second process: the first one ends too, and one line says which one ended by what."""
    import psutil

    process = start(tmp_path)
    wait_for_steps(tmp_path, process, 3)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    ranks["1"].kill()
    started = time.monotonic()
    _, errors = process.communicate(timeout=IN_TIME + 20)
    assert time.monotonic() - started < IN_TIME
    assert process.returncode == 1
    assert errors.count("error:") == 1, errors
    assert "error: process 1 of the run ended with signal SIGKILL" in errors
    assert "Traceback" not in errors
    assert not any(child.is_running() for child in ranks.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "line", "tracebacks"),
    [
        ('ValueError("a bug")', 1, "error: process 1: ValueError: a bug", 1),
        ('__import__("vit_finetune").RequestError("no such file")', 2, "error: process 1: no such file", 0),
    ],
    ids=["a bug", "bad data"],
)
def test_launch__one_process_raises(tmp_path: Path, error: str, code: int, line: str, tracebacks: int) -> None:
    """An exception in the second process ends both with one line that names it; a bug keeps its one traceback."""
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(error=error))
    began = tmp_path / "began"
    process = start(tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]), FAULT_BEGAN=str(began))
    _, errors = process.communicate(timeout=PATIENCE)
    assert time.time() - began.stat().st_mtime < IN_TIME
    assert process.returncode == code
    assert errors.count("error:") == 1, errors
    assert line in errors
    assert errors.count("Traceback") == tracebacks, errors


@pytest.mark.parametrize(
    ("world", "error", "message"),
    [
        ("1", RequestError("no"), "no"),
        ("2", RequestError("no"), "process 1: no"),
        ("2", KeyError("no"), "process 1: KeyError: 'no'"),
        ("2", WorkError("no", is_of_all=True), "no"),
        ("2", RunStopped("saved", is_of_all=True), "saved"),
    ],
)
def test_with_rank(monkeypatch: pytest.MonkeyPatch, world: str, error: Exception, message: str) -> None:
    """A process is named where it alone knows the reason."""
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", "1")
    assert with_rank(error) == message


@pytest.mark.parametrize(
    ("codes", "told", "answer"),
    [
        ([1, -9], None, (1, "process 1 of the run ended with signal SIGKILL")),
        ([-15, -11], None, (1, "process 1 of the run ended with signal SIGSEGV")),
        ([1, 2], 1, (2, "no such picture")),
        ([-9, 1], 1, (1, "no such picture")),
    ],
)
def test_first_cause(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codes: list[int],
    told: int | None,
    answer: tuple[int, str],
) -> None:
    """A reason comes before a kill, and a kill before an exit code, which the loss of a peer gives too."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    if told is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{told}.json"))
        report_failure(RequestError("no such picture"))
    failures = {rank: ProcessFailure(rank, 1, code, str(tmp_path / f"{rank}.json")) for rank, code in enumerate(codes)}
    assert _first_cause(failures) == answer
