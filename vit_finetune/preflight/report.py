"""A check told: lines for a terminal, and a folder with check.json, check.html and labels.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json, write_text
from vit_finetune.data.audit.findings import KINDS, Finding, printable
from vit_finetune.preflight.outcome import CheckResult
from vit_finetune.preflight.page import page_of

REPORT_FILE = "check.json"
_SHOWN = 3  # examples of a finding on a terminal
_LONGEST = 120  # letters of one example on a terminal


def finding_lines(finding: Finding) -> list[str]:
    """Return a finding as people read it: what and where, then what to do."""
    shown = [_shortened(f"{case.name} ({case.note})" if case.note else case.name) for case in finding.examples[:_SHOWN]]
    more = f", and {finding.how_many - len(shown):,} more" if finding.how_many > len(shown) else ""
    return [
        f"{finding.code}: {finding.how_many:,} {finding.what}: {', '.join(shown)}{more}",
        KINDS[finding.code].remedy,
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def result_lines(result: CheckResult) -> list[str]:
    """Return a whole check for a terminal: the sizes, a table of findings, what it cost, and the verdict.

    Args:
        result: of `check`.
    """
    sizes = ", ".join(f"{count:,} {name}" for name, count in result.sizes().items())
    lines = [f"data     {sizes}; {len(result.classes()):,} classes", f"files    {result.pace}"]
    for finding in result.findings:
        what, remedy = finding_lines(finding)
        lines += [f"{finding.severity.name.lower():8} {what}", f"         -> {remedy}"]
    lines += [f"dry run  {line}" for line in figure_lines(result.figures)]
    lines.append("took     " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in result.seconds.items()))
    return [*lines, f"verdict  {result.verdict}"]


def figure_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the figures of a dry run in words.

    Args:
        figures: of a rehearsal; those that it didn't get to are left out.
    """
    lines = []
    if "device" in figures:
        lines.append(f"{figures['device']}, mixed precision {figures['mixed_precision']}")
    if "seconds_per_epoch" in figures:
        lines.append(
            f"{figures['seconds_per_epoch']:,.1f} s an epoch, without evaluation: network "
            f"{figures['seconds_per_epoch_network']:,.1f} s at {figures['per_device_batch_size']} pictures at once, "
            f"pictures {figures['seconds_per_epoch_pictures']:,.1f} s on {figures['num_workers']} workers"
        )
    if "seconds_for_features" in figures:
        lines.append(f"{figures['seconds_for_features']:,.1f} s for the features, once")
    for name, what in (("peak_memory_bytes", "memory"), ("disk_bytes", "disk")):
        of = figures.get({"memory": "memory_bytes", "disk": "disk_free_bytes"}[what])
        if figures.get(name) is not None and of is not None:
            lines.append(f"{what}: {figures[name] / 1e9:,.2f} GB of {of / 1e9:,.2f} GB")
    return lines


def write_report(result: CheckResult, folder: Path) -> None:
    """Write a check as a folder, whole or not at all.

    Args:
        result: of `check`.
        folder: is made, or replaced where it holds an earlier report.

    Raises:
        RequestError: something else lies there.
    """
    check_output(folder)
    with atomic_folder(folder, replace=True) as temporary:
        write_json(temporary / REPORT_FILE, result.to_mapping())
        write_text(temporary / "check.html", page_of(result, figure_lines(result.figures)))
        if result.ranking:
            _write_ranking(result.ranking, temporary / "labels.csv")


def check_output(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier report.

    Args:
        folder: may be missing or empty.

    Raises:
        RequestError: it is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; give a folder for the report")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / REPORT_FILE).is_file():
        raise RequestError(f"{folder} is not empty and no report of a check; give another --output")


def _write_ranking(ranking: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the ranking of labels, the most suspicious first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["rank", *ranking[0]])
        for rank, row in enumerate(ranking, start=1):
            rows.writerow([rank, *(printable(value) if isinstance(value, str) else value for value in row.values())])
