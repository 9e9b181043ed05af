"""What a run ran on: versions, processor, memory. Read when asked, never at import."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

_PACKAGES = (
    *("vit-finetune", "torch", "torchvision", "timm", "accelerate", "safetensors", "datasets", "huggingface_hub"),
    *("einops", "numpy", "pillow", "pydantic"),
)


def num_cores() -> int:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def let_threads_sleep() -> None:
    """Have OpenMP's threads wait for each other asleep after a moment of spinning, before anything loads it.

    libgomp's spin for a thousandth of a second or more, and where another program has the core, the thread that they
    wait for does not run meanwhile: a training step beside one busy process takes half the time with short spins
    (benchmarks/cpu_settings.py). What the environment says already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has held, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> dict[str, Any]:
    """Return versions and machine as plain JSON values, for a run's `environment.json`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cores": num_cores(),
        "command": sys.argv,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
