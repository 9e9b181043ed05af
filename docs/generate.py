"""The parts of the documents that follow from the code: tables of options, the drawing of the house, the reference.

Run: python docs/generate.py (tests/test_docs_generated.py fails with this line where a part is out of date)
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
_PART = "<!-- begin {name}: made by docs/generate.py -->\n{text}<!-- end {name} -->"


def options(origin: str) -> str:
    """Return the table of another trainer's options, as `recipes import` takes them."""
    from vit_finetune.migration import ORIGINS

    rows = ["| theirs | ours | how, or why there is none |", "| --- | --- | --- |"]
    for name, keys, says in ORIGINS[origin][0].rows():
        ours = ", ".join(f"`{key}`" for key in keys.split(", ")) if keys and not keys.startswith("none") else keys
        rows.append(f"| `{name}` | {ours or 'none'} | {says} |")
    return "\n".join(rows) + "\n"


def differences(origin: str) -> str:
    """Return what acts otherwise than another trainer in every run."""
    from vit_finetune.migration import ORIGINS

    return "".join(f"- {text}\n" for text in ORIGINS[origin][0].differs)


def may_import() -> dict[str, set[str]]:
    """Return the table that the architecture test enforces."""
    path = ROOT / "tests" / "test_architecture.py"
    table: dict[str, set[str]] = runpy.run_path(str(path))["MAY_IMPORT"]
    return {room: below for room, below in table.items() if not room.startswith("__")}


def floors() -> list[list[str]]:
    """Return the rooms by height: a room stands on the floor above the highest that it may import."""
    table = may_import()
    heights: dict[str, int] = {}

    def height(room: str) -> int:
        if room not in heights:
            heights[room] = 1 + max((height(below) for below in table[room] - {room}), default=-1)
        return heights[room]

    return [[room for room in table if height(room) == level] for level in range(max(map(height, table)), -1, -1)]


def house() -> str:
    """Return the drawing, a line a floor, the ground last, and the table of arrows."""
    table, rows = may_import(), floors()
    width = max(len("   ".join(rooms)) for rooms in rows)
    lines = ["```text", "┌" + "─" * (width + 2) + "┐"]
    for number, rooms in enumerate(rows):
        lines += ["├" + "─" * (width + 2) + "┤"] if number else []
        lines.append("│ " + "   ".join(rooms).center(width) + " │")
    lines += ["└" + "─" * (width + 2) + "┘", "```", "", "| room | may import |", "| --- | --- |"]
    for rooms in rows:
        for room in rooms:
            below = sorted(table[room] - {room})
            lines.append(f"| `{room}` | {', '.join(f'`{name}`' for name in below) or 'nothing of ours'} |")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """Return the public names, room by room, each to be replaced by its docstring."""
    import vit_finetune

    lines: list[str] = []
    for room, names in vit_finetune._ROOMS.items():
        lines += [f"## {room}", ""]
        for name in names:
            lines += [f"::: {getattr(vit_finetune, name).__module__}.{name}", ""]
    return "\n".join(lines)


def parts() -> dict[tuple[str, str], str]:
    """Return (document, name of the part) -> what it should hold."""
    return {
        ("coming_from.md", "timm"): options("timm"),
        ("coming_from.md", "timm differs"): differences("timm"),
        ("coming_from.md", "hf"): options("hf"),
        ("coming_from.md", "hf differs"): differences("hf"),
        ("architecture.md", "house"): house(),
        ("reference.md", "names"): reference(),
    }


def replaced(text: str, name: str, part: str) -> str:
    """Return a document with one part put in."""
    pattern = _PART.format(name=re.escape(name), text="(?s:.*?)")
    made, count = re.subn(pattern, lambda _: _PART.format(name=name, text=part), text)
    if count != 1:
        raise SystemExit(f"the document has {count} places for {name}")
    return made


def main() -> None:
    """Write every part."""
    for (document, name), part in parts().items():
        path = HERE / document
        path.write_text(replaced(path.read_text(encoding="utf-8"), name, part), encoding="utf-8")


if __name__ == "__main__":
    main()
