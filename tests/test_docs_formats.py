"""The table of formats in the documents is the list of formats in the code."""

from __future__ import annotations

import re
from pathlib import Path

from vit_finetune.weights.formats import FORMATS

DOCUMENT = Path(__file__).parent.parent / "docs" / "formats.md"
VERIFIED = ("library", "restated", "timm's reader", "refused")


def rows():
    """Return the cells of each line of the table, whose first cell is a format's name."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if re.match(r"\| `\w+` \| ", line)]
    start = next(index for index, line in enumerate(tables) if line.startswith("| `timm`"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[start:]]
    return [row for row in cells if len(row) == 7]


def test_table__names_every_format_once():
    """Names and libraries are those of the code, in its order."""
    assert [(row[0].strip("`"), row[1]) for row in rows()] == [(name, one.library) for name, one in FORMATS.items()]


def test_table__says_which_are_only_refused():
    """A format is read and written, or neither; each says how it was verified, and what comes back."""
    for name, _, read, written, back, _, verified in rows():
        refused = "{rest}" in FORMATS[name.strip("`")].refuse
        assert (read, written) == (("no", "no") if refused else ("yes", "yes"))
        assert verified.startswith(VERIFIED)
        assert (verified == "refused") == refused
        assert back == "" if refused else back in {"bitwise", "functional"}
