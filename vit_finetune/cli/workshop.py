"""Verbs about the installation itself: doctor, completion."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer

from vit_finetune.cli.app import COMPLETE_VARIABLE, PROGRAM, app

Shell = StrEnum("Shell", ["BASH", "ZSH", "FISH"])


@app.command()
def doctor(
    *,
    network: Annotated[bool, typer.Option("--network", help="Ask whether the Hub answers, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this installation can do and what is missing for which feature; exit code 1 if it cannot run.

    Example: vit-finetune doctor --network
    """
    from vit_finetune.doctor import examine, lines

    findings = examine(network=network)
    print(json.dumps([finding.to_mapping() for finding in findings]) if as_json else "\n".join(lines(findings)))
    sys.exit(1 if any(finding.verdict == "broken" for finding in findings) else 0)


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="The shell to print it for.")]) -> None:
    """Print what makes a shell complete verbs, options and recipes.

    Example: vit-finetune completion bash >> ~/.bashrc
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it is there, unlisted

    print(get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell))
