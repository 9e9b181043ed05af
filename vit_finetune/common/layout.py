"""Where things lie in a run's folder that more than one room looks for."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.parquet"
"""The pictures of a run, one row each."""


def rung_dir(run_dir: Path, name: str) -> Path:
    """Return the folder of a rung in the folder of a run under a budget."""
    return run_dir / "rungs" / name
