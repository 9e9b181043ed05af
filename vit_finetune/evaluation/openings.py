"""How often the test split of a run was scored: a test figure is worth less each time that somebody looks at it.

Each scoring adds a line to `test_openings.jsonl` in the run's folder. A line is appended in one write, so several
processes may add at once. What cannot be counted: figures of the same pictures that were opened in some other way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from vit_finetune.common.errors import WorkError

OPENINGS_FILE = "test_openings.jsonl"


def note_opening(run_dir: Path, *, command: str, metrics: Mapping[str, float]) -> int:
    """Note that the test split of a run was scored.

    Args:
        run_dir: its folder.
        command: what scored it: train, evaluate, soup or sweep.
        metrics: what came out; empty where the figures are written elsewhere.

    Returns:
        How often it has been scored now, this time included.

    Raises:
        WorkError: the disk refused the line.
    """
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command, **metrics}
    path = run_dir / OPENINGS_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, (json.dumps(row) + "\n").encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise WorkError(
            f"cannot write {path}: {error.strerror}; the opening of the test split must be noted"
        ) from error
    return num_openings(run_dir)


def num_openings(run_dir: Path) -> int:
    """Return how often the test split of a run was scored."""
    path = run_dir / OPENINGS_FILE
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def opening_lines(run_dir: Path) -> list[str]:
    """Return what a person is told about the openings; nothing where there was none."""
    count = num_openings(run_dir)
    if not count:
        return []
    warned = "; whoever chose by these figures has none left that are untouched" if count > 1 else ""
    return [f"test     opened {count} time{'s' if count > 1 else ''} ({run_dir / OPENINGS_FILE}){warned}"]
