"""What a sweep found, sorted: for people and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_finetune.evaluation.soups import best_first
from vit_finetune.sweeps.spaces import told

Row = dict[str, Any]


def trial_name(number: int) -> str:
    """Return the name of a trial's folder."""
    return f"trial-{number:03d}"


def ranked(rows: Mapping[int, Row], metric: str) -> list[Row]:
    """Return the trials' rows, best first, failed ones last; of equal ones the earlier trial first."""
    in_order = [row for _, row in sorted(rows.items())]
    done = [row for row in in_order if "metrics" in row]
    places = best_first([row["metrics"][metric] for row in done], metric)
    return [*(done[place] for place in places), *(row for row in in_order if "metrics" not in row)]


def as_csv(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Return rows as a table: trial, the values of the keys, figures of val, and why a trial failed."""
    figures = list(dict.fromkeys(key for row in rows for key in row.get("metrics", {})))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", *keys, *figures, "failed"])
    for row in rows:
        metrics = [row.get("metrics", {}).get(key, "") for key in figures]
        table.writerow([row["trial"], *(row["values"][key] for key in keys), *metrics, row.get("failed", "")])
    return text.getvalue()


def summary(rows: Sequence[Row], metric: str, test: Mapping[str, float] | None, best_run: Path) -> Iterator[str]:
    """Yield the result for people, best first."""
    yield f"sweep    {len(rows)} trials, best first by {metric} on val"
    for row in rows:
        figure = f"{row['metrics'][metric]:.4f}" if "metrics" in row else "failed"
        yield f"  {figure:>8}  {trial_name(row['trial'])}  {told(row['values'])}"
    if test is not None:
        yield "test     of the best: " + "  ".join(f"{key} {value:.4f}" for key, value in test.items())
    else:
        yield "note     the best figure flatters: it was chosen by it, and there is no test split to score it on"
    yield f"next     vit-finetune predict {best_run} PICTURE_OR_FOLDER..."
