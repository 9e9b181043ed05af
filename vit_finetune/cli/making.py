"""Verbs that make models: train, sweep."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vit_finetune.cli.app import Overwrite, app


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, the name of a shipped recipe, or a run's folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in run.dir, or start it.")] = False,
    overwrite: Overwrite = False,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes on this machine that share the run.")] = 1,
) -> None:
    """Fine-tune a model as a recipe says.

    Example: vit-finetune train image_folder data.root=./photos run.dir=runs/photos
    """
    from vit_finetune.config import Config

    config = Config.load(recipe, overrides=overrides or [])
    if num_processes > 1:
        from vit_finetune.training.launch import launch

        flags = ["--resume"] * resume + ["--overwrite"] * overwrite
        code, message = launch(["train", recipe, *(overrides or []), *flags], num_processes=num_processes)
        if message is not None:
            print(f"error: {message}", file=sys.stderr)
        sys.exit(code)
    from vit_finetune.finetune import finetune

    finetune(config, resume=resume, overwrite=overwrite)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="A YAML file or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=[A,B]", help="Run every combination; once a key. augreg: its rates and lengths."),
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option(metavar="KEY=LOW..HIGH", help="Let optuna choose, also from KEY=[A,B].")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many runs a search makes.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in run.dir, or start it.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a recipe with different values; the best by val is scored on the test split once.

    Example: vit-finetune sweep image_folder data.root=./photos --grid optimizer.lr=[0.001,0.003]
    """
    from vit_finetune.config import Config
    from vit_finetune.sweeps import sweep as run_sweep
    from vit_finetune.sweeps.spaces import read_grid, read_search

    run_sweep(
        Config.load(recipe, overrides=overrides or []),
        grid=read_grid(grid or []),
        search=read_search(search or []),
        trials=trials,
        resume=resume,
        overwrite=overwrite,
    )
