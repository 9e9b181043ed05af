"""The figures of a run as JSON lines: `metrics.jsonl` and `timing.jsonl`.

`metrics.jsonl` holds functions of (configuration, step) only, so a resumed run writes it byte for byte as
an undisturbed one; whatever a clock says goes to `timing.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_finetune.common.errors import WorkError
from vit_finetune.common.files import sync, write_text


class Journal:
    """Appends flat rows to a file of JSON lines.

    Args:
        path: the file; made when the first row comes.
        enabled: false on all processes but the first, where nothing is written.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path = path
        self.enabled = enabled

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row and hand it to the operating system.

        Raises:
            WorkError: the disk refused it.
        """
        if not self.enabled:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {error}") from None

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that are whole; a last line torn by a kill is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def sync(self) -> None:
        """Have the disk hold every row so far: a checkpoint must not outlive the figures of its step.

        Raises:
            WorkError: the disk refused it.
        """
        try:
            if self.enabled and self.path.is_file():
                sync(self.path)
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {error}") from None

    def cut(self, step: int) -> None:
        """Remove every row after `step` done steps: the resumed run will write them again.

        Raises:
            WorkError: the disk refused it; the rows are what they were.
        """
        if not self.enabled or not self.path.is_file():
            return
        kept = (row for row in self.rows() if row["step"] <= step)
        try:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        except OSError as error:
            raise WorkError(f"cannot write {self.path}: {error}") from None
