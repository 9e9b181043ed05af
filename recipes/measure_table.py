"""Write the figures that measure.py took as the table of README.md, beside what the protocols' authors published.

Run: python recipes/measure_table.py [runs/measure/results.jsonl] [recipes/README.md]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = re.compile(r"(?<=<!-- measured -->\n).*(?=<!-- end -->)", re.DOTALL)
PUBLISHED = re.compile(r"^# Published(?:, |: )(.*?)\n(?:#?\n|[^#])", re.DOTALL | re.MULTILINE)


def published(recipe: str) -> str:
    """Return the paragraph of a recipe's head comment that says what is published."""
    found = PUBLISHED.search((HERE / f"{recipe}.yaml").read_text(encoding="utf-8"))
    return "" if found is None else re.sub(r"\s*\n# ?", " ", found[1]).partition(" What these settings")[0]


def accuracy(rows: list[dict[str, Any]]) -> str:
    """Return the accuracy in percent; of several seeds the mean and the range."""
    figures = [100 * row["accuracy"] for row in rows] or [float("nan")]
    spread = f" ({min(figures):.1f} to {max(figures):.1f})" if len(figures) > 1 else ""
    return f"{sum(figures) / len(figures):.1f}{spread}" if rows else ""


def table(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Return the table as Markdown: a row a recipe, a column of accuracy a data set; times are of the first."""
    data = list(dict.fromkeys(row["data"] for row in rows))
    heads = ["recipe", "with", *data, "trained", "s / epoch", "s in all", "published on its own data"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    measured = {row["recipe"] for row in rows}
    for recipe, changes in ((name, kept) for name, kept in settings["recipes"].items() if name in measured):
        mine = [row for row in rows if row["recipe"] == recipe]
        first = next((row for row in mine if row["data"] == data[0]), {}) if data else {}
        counts = [(first.get("trained"), ","), (first.get("epoch_seconds"), ".0f"), (first.get("seconds"), ".0f")]
        cells = [f"[{recipe}]({recipe}.yaml)", f"`{' '.join(changes)}`" if changes else ""]
        cells += [accuracy([row for row in mine if row["data"] == name]) for name in data]
        cells += ["" if value is None else format(value, form) for value, form in counts]
        lines.append(f"| {' | '.join([*cells, published(recipe)])} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Put the table between the marks of the document, and print it."""
    places = [*arguments, *("runs/measure/results.jsonl", HERE / "README.md")[len(arguments) :]]
    log, document = map(Path, places)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    made = table(rows, json.loads((HERE / "measure.json").read_text(encoding="utf-8")))
    document.write_text(TABLE.sub(lambda _: made, document.read_text(encoding="utf-8")), encoding="utf-8")
    print(made, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
