"""Ending early and whole: what signals, a time limit and a second Ctrl-C do, on one process and on two."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import ROOT, make_pictures, run_module, tiny_config
from training_helpers import Run, plan_of, scorer, steps_of
from warm_python import warm_python

from vit_finetune import RequestError, finetune
from vit_finetune.common.errors import RunStopped
from vit_finetune.training import checkpoint as store
from vit_finetune.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_fit__a_signal_ends_the_run_after_its_step(tmp_path: Path, number: int) -> None:
    """The step that the signal came in is done and saved, the message says how to go on, and handlers are put back."""

    def batches() -> Any:
        for step, batch in enumerate(steps_of()):
            if step == 2:
                os.kill(os.getpid(), number)
            yield batch

    run, stop, before = Run.start(tmp_path), StopRequest(), signal.getsignal(number)
    name = signal.Signals(number).name
    with (
        stop.listening(),
        pytest.raises(RunStopped, match=f"stopped by {name} after step 3, which is saved; go on with"),
    ):
        run.fit(plan_of(save_every=6, evaluate_every=6), batches=batches(), stop=stop)
    assert store.pointed_step(tmp_path / "checkpoints", "LATEST") == 3
    assert signal.getsignal(number) is before


def test_fit__a_signal_in_the_last_step_is_too_late(tmp_path: Path) -> None:
    """A run that is done with its last step is done."""
    stop = StopRequest()
    stop.reason = "SIGTERM"
    assert Run.start(tmp_path).fit(plan_of(num_steps=1, warmup_steps=0), evaluate=scorer(), stop=stop).step == 1


def test_stop_request__second_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Ctrl-C asks; passed on twice within a second it is one; pressed again later it ends at once."""
    now = [100.0]
    monkeypatch.setattr("vit_finetune.training.stopping.time.monotonic", lambda: now[0])
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        now[0] += 0.5
        signal.raise_signal(signal.SIGINT)
        assert stop.is_wanted()
        now[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stop_request__time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is to stop when two more of its longest steps and saves would not fit."""
    now = [0.0]
    monkeypatch.setattr("vit_finetune.training.stopping.time.monotonic", lambda: now[0])
    stop = StopRequest(time_limit=100)
    stop.took(step=10)
    stop.took(step=4, save=5)
    now[0] = 69.9
    assert not stop.is_wanted()
    now[0] = 70.0
    assert stop.is_wanted()
    assert stop.reason == "the time limit of 100 s"


def test_stop_request__outside_of_the_main_thread() -> None:
    """A run in another thread cannot listen, and runs."""
    done = []

    def work() -> None:
        with StopRequest().listening():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_finetune__a_time_limit_needs_steps(tmp_path: Path) -> None:
    """A budget is a time limit already."""
    config = tiny_config(make_pictures(tmp_path / "pictures", train=2, val=1), tmp_path / "run")
    config["train"] = {"budget": "1m"}
    with pytest.raises(RequestError, match="a time limit stops training between steps"):
        finetune(config, time_limit=60)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what writes the recipe of a run of 24 steps."""
    folder = tmp_path_factory.mktemp("runs")
    root = make_pictures(folder / "pictures", train=6, val=2)

    def recipe(name: str, *, workers: int = 0) -> Path:
        train = {"steps": 24, "global_batch_size": 6, "per_device_batch_size": 2}
        options = {"train": train, "evaluation": {"every_steps": 24}, "data": {"num_workers": workers}}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny_config(root, folder / name, **options)))
        return path

    return recipe


@pytest.fixture(scope="module")
def undisturbed(recipes: Callable[..., Path]) -> Callable[[int], Path]:
    """Return what gives the folder of the undisturbed run on so many processes."""

    @functools.cache
    def whole(processes: int) -> Path:
        recipe = recipes(f"whole{processes}")
        done = run_module(["train", str(recipe), "--num-processes", str(processes)])
        assert done.returncode == 0, done.stderr
        return recipe.with_suffix("")

    return whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes", "workers"),
    [(signal.SIGTERM, 1, 0), (signal.SIGINT, 2, 0), (signal.SIGINT, 1, 2)],
)
def test_train__stopped_by_a_signal_and_resumed(
    recipes: Callable[..., Path], undisturbed: Callable[[int], Path], number: int, processes: int, workers: int
) -> None:
    """The command exits with 3 and one line once the run is saved; resumed, it ends byte for byte as undisturbed.

    With workers an interpreter of its own gets the signal, and all of its workers too, as a terminal's Ctrl-C and a
    batch system's signals do.
    """
    recipe = recipes(f"stopped{number}{processes}{workers}", workers=workers)
    run_dir = recipe.with_suffix("")
    arguments = ["-m", "vit_finetune", "train", str(recipe), "--num-processes", str(processes)]
    process = subprocess.Popen(
        [sys.executable if workers else warm_python(), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    journal, deadline = run_dir / "metrics.jsonl", time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    (os.killpg if workers else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3, errors
    assert errors.count(f"stopped by {signal.Signals(number).name} after step") == 1
    assert "error:" not in errors
    assert "Traceback" not in errors
    assert not (run_dir / "metrics.json").exists()
    done = run_module([*arguments[2:], "--resume"])
    assert done.returncode == 0, done.stderr
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (run_dir / name).read_bytes() == (undisturbed(processes) / name).read_bytes()
