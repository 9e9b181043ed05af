"""Verbs that tell of finished runs: report, compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vit_finetune.cli.app import Overwrite, app


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, finished or not.")],
    *,
    output: Annotated[Path | None, typer.Option(help="The file; report.html in the run's folder if not given.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the pictures lie now, if they have moved.")
    ] = None,
    attention: Annotated[bool, typer.Option(help="Draw what the model looked at, which loads it.")] = True,
) -> None:
    """Write what a run saved as one page that needs nothing else; an older page is replaced.

    Example: vit-finetune report runs/photos
    """
    from vit_finetune.report import write_report

    print(write_report(run, output, pictures=pictures, attention=attention))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs; the first is the baseline.")
    ],
    *,
    output: Annotated[Path, typer.Option(help="The page.")] = Path("compare.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and write no page.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Say which of several runs is better on the same pictures, how sure that is, and what was configured otherwise.

    Example: vit-finetune compare runs/photos runs/photos_lora
    """
    from vit_finetune.report import check_page, compare_runs, comparison_lines, write_comparison

    if as_json:
        print(json.dumps(compare_runs(runs).to_mapping()))
        return
    check_page(output, overwrite=overwrite)
    comparison = compare_runs(runs)
    print("\n".join(comparison_lines(comparison)))
    print(f"page     {write_comparison(comparison, output, overwrite=overwrite)}")
