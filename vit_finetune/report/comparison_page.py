"""A comparison told: lines for a terminal, and one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_text
from vit_finetune.data.audit.findings import printable
from vit_finetune.pages.rendering import render
from vit_finetune.report.comparing import Compared, Comparison

_MOST_CLASSES = 10  # of a difference that are told


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return a comparison for a terminal.

    Args:
        comparison: of `compare_runs`.
    """
    width = max(len(printable(run.name)) for run in comparison.runs)
    keys = [figure.key for figure in comparison.runs[0].figures]
    lines = [f"{'run':<{width}}  {'pictures':>8}  " + "  ".join(f"{key:>22}" for key in keys)]
    for run in comparison.runs:
        cells = "  ".join(f"{_cell(run, key):>22}" for key in keys)
        lines.append(f"{printable(run.name):<{width}}  {run.num_samples:>8,}  {cells}")
    lines += [
        "",
        f"on the {comparison.num_common:,} pictures that all of them scored, against {comparison.runs[0].name}:",
    ]
    what = "exact matches " if comparison.is_multilabel else ""
    for item in comparison.differences:
        interval = f"{what}{100 * item.difference:+.2f} points ({100 * item.low:+.2f} to {100 * item.high:+.2f})"
        alone = f"right alone {item.only_this:,} against {item.only_baseline:,}"
        lines.append(f"{printable(item.name):<{width}}  {interval}, {alone}, McNemar p {item.p_value:.3g}")
        lines += [
            f"{'':<{width}}  {change.name} {100 * change.difference:+.2f} points "
            f"({100 * change.low:+.2f} to {100 * change.high:+.2f})"
            for change in item.figures
        ]
    if comparison.settings:
        key_width = max(len(key) for key, _ in comparison.settings)
        lines += ["", "configured otherwise:"]
        lines += [f"{key:<{key_width}}  " + "  |  ".join(map(printable, values)) for key, values in comparison.settings]
    return lines


def _cell(run: Compared, key: str) -> str:
    figure = next((figure for figure in run.figures if figure.key == key), None)
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} ({figure.low:.3f}-{figure.high:.3f})"


def check_page(output: Path, *, overwrite: bool) -> None:
    """Refuse a place that a page cannot be written to, before the work is done.

    Raises:
        RequestError: a folder is there, or a file and `overwrite` was not asked for.
    """
    if output.is_dir():
        raise RequestError(f"{output} is a folder; give the name of a file")
    if output.exists() and not overwrite:
        raise RequestError(f"{output} exists already; give another --output or --overwrite")


def write_comparison(comparison: Comparison, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write a comparison as one page that needs nothing else.

    Args:
        comparison: of `compare_runs`.
        output: the file.
        overwrite: replace an older one.

    Returns:
        The file.

    Raises:
        RequestError: it exists and is not to be replaced, or is a folder.
    """
    path = Path(output)
    check_page(path, overwrite=overwrite)
    write_text(path, render("compare.html", {"comparison": comparison, "most_classes": _MOST_CLASSES}))
    return path
