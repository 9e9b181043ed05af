"""What all verbs share: the application, the way errors are told, and options that several verbs have."""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

import typer

from vit_finetune import __version__
from vit_finetune.common.errors import RunStopped, VitFinetuneError
from vit_finetune.common.machine import let_threads_sleep

PROGRAM = "vit-finetune"
COMPLETE_VARIABLE = "_VIT_FINETUNE_COMPLETE"  # the shell's script sets it and asks the program what may follow

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; an accelerator where there is one.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run's folder, a model folder or its safetensors file.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def program(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """From any pretrained ViT checkpoint to a classifier for your own images."""
    del version  # answered before any verb


def told(message: str, exit_code: int) -> str:
    """Return the line for what ended a verb; a run that was stopped and saved is no error."""
    return message if exit_code == RunStopped.exit_code else f"error: {message}"


def main() -> None:
    """Run the command line; errors meant for people are one line on stderr and an exit code."""
    let_threads_sleep()
    if COMPLETE_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]  # it is there, unlisted

        completion_init()  # typer's readers of what the shell passes; without its two options in every --help
    try:
        app(prog_name=PROGRAM if COMPLETE_VARIABLE in os.environ else None)
    except VitFinetuneError as error:
        from vit_finetune.training.launch import report_failure, with_rank

        if not report_failure(error):
            print(told(with_rank(error), error.exit_code), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        from vit_finetune.training.launch import launched_by_us, lost_a_peer, report_failure

        if not lost_a_peer(error):
            report_failure(error)
            raise
        if not launched_by_us():
            print("error: stopped, because another process of this run ended", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # else the interpreter's last search for garbage looks at all that torch imported, for a second
