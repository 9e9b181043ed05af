"""What a run ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from vit_finetune.common.machine import environment, let_threads_sleep, num_cores, peak_memory_bytes


def test_environment__is_json_with_true_versions() -> None:
    """The environment is plain JSON and holds the versions that are running; a missing package is null."""
    told = json.loads(json.dumps(environment()))
    assert told["python"] == platform.python_version()
    assert told["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert told["packages"]["vit-finetune"] is not None
    assert told["num_cores"] == num_cores()


def test_environment__names_a_missing_package(monkeypatch) -> None:
    """A package that is not installed is told as null rather than stopping a run."""
    monkeypatch.setattr("vit_finetune.common.machine._PACKAGES", ("no-such-package",))
    assert environment()["packages"] == {"no-such-package": None}


def test_num_cores__is_what_this_process_may_use() -> None:
    """The count obeys the process's own limits, not the machine's size."""
    assert num_cores() == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_peak_memory__is_in_bytes() -> None:
    """Touching 64 MiB shows in the peak, in bytes."""
    block = torch.ones(64 << 20, dtype=torch.uint8)
    peak = peak_memory_bytes()
    assert peak is None or peak > block.numel()


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_let_threads_sleep__obeys_the_environment(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short spins are asked for where the environment says nothing about waiting."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **given})
    let_threads_sleep()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
def test_let_threads_sleep__is_read_by_openmp() -> None:
    """The library that torch computes with, loaded afterwards, says that it waits so."""
    program = "from vit_finetune.common.machine import let_threads_sleep as calm; calm(); import torch"
    environ = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**environ, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GOMP_SPINCOUNT = '10000'" in ran.stderr
