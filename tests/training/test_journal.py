"""The journals: flat JSON lines that are cut to a step and go on as if nothing had happened."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vit_finetune.common.errors import WorkError
from vit_finetune.training.journal import Journal

ROWS = [
    {"step": 1, "split": "train", "loss": 1.0986122886681098},
    {"step": 2, "split": "train", "loss": 1e-07, "lr": 5e-324},
    {"step": 2, "split": "val", "loss": 0.1 + 0.2, "accuracy": 1.0},
    {"step": 3, "split": "train", "loss": 3},
]


def journal(path: Path) -> Journal:
    written = Journal(path / "metrics.jsonl")
    for row in ROWS:
        written.write(row)
    return written


def test_journal__a_line_a_row(tmp_path: Path) -> None:
    """Each row is one line of JSON, and every number comes back as it was."""
    written = journal(tmp_path)
    assert [json.loads(line) for line in written.path.read_text().splitlines()] == ROWS
    assert written.rows() == ROWS


def test_journal__cut_keeps_the_bytes(tmp_path: Path) -> None:
    """Cutting at a step removes what came after it, keeps that step's rows, and changes no byte of what stays."""
    written = journal(tmp_path)
    lines = written.path.read_bytes().splitlines(keepends=True)
    written.cut(2)
    assert written.path.read_bytes() == b"".join(lines[:3])
    written.write(ROWS[3])
    assert written.path.read_bytes() == b"".join(lines)
    written.cut(0)
    assert written.path.read_bytes() == b""


def test_journal__torn_last_line(tmp_path: Path) -> None:
    """A line that a kill tore is left out and cut away."""
    written = journal(tmp_path)
    whole = written.path.read_bytes()
    with written.path.open("ab") as file:
        file.write(b'{"step": 4, "spl')
    assert written.rows() == ROWS
    written.cut(10)
    assert written.path.read_bytes() == whole


def test_journal__other_processes_write_nothing(tmp_path: Path) -> None:
    """On all processes but the first nothing is written and nothing is cut."""
    journal(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    silent = Journal(tmp_path / "metrics.jsonl", enabled=False)
    silent.write(ROWS[0])
    silent.cut(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_journal__missing_file(tmp_path: Path) -> None:
    """A journal that was never written has no rows, and cutting it makes no file."""
    empty = Journal(tmp_path / "metrics.jsonl")
    empty.cut(3)
    assert empty.rows() == []
    assert list(tmp_path.iterdir()) == []


def test_journal__refuses_what_json_cannot_say(tmp_path: Path) -> None:
    """NaN is no JSON: it is refused before a byte is written."""
    written = journal(tmp_path)
    before = written.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        written.write({"step": 4, "loss": math.nan})
    assert written.path.read_bytes() == before


def test_journal__disk_refuses(tmp_path: Path) -> None:
    """A place that cannot be written to is one clear error that names the file."""
    with pytest.raises(WorkError, match=r"cannot write .*nowhere/metrics\.jsonl"):
        Journal(tmp_path / "nowhere" / "metrics.jsonl").write(ROWS[0])
