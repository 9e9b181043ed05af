"""What a run ran on."""

from __future__ import annotations

import json
import os
import platform

import torch

from vit_finetune.common.machine import environment, num_cores, peak_memory_bytes


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
