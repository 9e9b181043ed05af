"""Verbs that make models: train, check, sweep."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vit_finetune.cli.app import Overwrite, app, told
from vit_finetune.common.errors import RequestError

CheckLevel = StrEnum("CheckLevel", ["QUICK", "FULL"])


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, the name of a shipped recipe, a run's folder, or a folder of pictures.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Time for the whole run: 90s, 10m, 1h30m.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Repeat the run under a budget that wrote this plan.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in run.dir, or start it.")] = False,
    overwrite: Overwrite = False,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop and save before so much time is over; go on by --resume.")
    ] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes on this machine that share the run.")] = 1,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write where a step's time goes: run.profile=true.")
    ] = False,
) -> None:
    """Fine-tune a model as a recipe says.

    A folder of pictures goes with the recipe image_folder into runs/NAME_OF_THE_FOLDER.

    Example: vit-finetune train ./photos --budget 10m
    """
    from vit_finetune.common.durations import seconds_of
    from vit_finetune.config import Config
    from vit_finetune.recipe import recipe_of_pictures

    recipe, implied = recipe_of_pictures(recipe)
    overrides = [*implied, *([f"train.budget={budget}"] if budget is not None else []), *(overrides or [])]
    overrides += ["run.profile=true"] * profile
    config = Config.load(recipe, overrides=overrides)
    seconds = None if time_limit is None else seconds_of(time_limit)
    if budget is not None and config.train.budget != budget:
        raise RequestError(f"--budget {budget} and train.steps or train.epochs contradict each other; give one of them")
    from vit_finetune.preflight import check_before_training

    check_before_training(config, resume=resume, overwrite=overwrite)
    if num_processes > 1:
        from vit_finetune.training.launch import launch

        flags = ["--resume"] * resume + ["--overwrite"] * overwrite
        flags += ["--plan", str(plan)] if plan is not None else []
        flags += ["--time-limit", time_limit] if time_limit is not None else []
        code, message = launch(["train", recipe, *overrides, *flags], num_processes=num_processes)
        if message is not None:
            print(told(message, code), file=sys.stderr)
        sys.exit(code)
    from vit_finetune.finetune import finetune
    from vit_finetune.training import leave_processes

    finetune(config, resume=resume, overwrite=overwrite, replay=plan, time_limit=seconds)
    leave_processes()


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A YAML file, the name of a shipped recipe, or a folder of pictures.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    level: Annotated[CheckLevel, typer.Option(help="full decodes, judges labels and tries a batch, too.")] = (
        CheckLevel.FULL
    ),
    output: Annotated[
        Path | None, typer.Option(help="Folder of the report; RUN.DIR_check if not given. An earlier one is replaced.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is wrong with a data set and a recipe before a run: go, go with warnings or stop (exit code 1).

    Example: vit-finetune check ./photos --level quick
    """
    import json

    from vit_finetune.config import Config
    from vit_finetune.preflight import check as run_check
    from vit_finetune.preflight.report import check_output, result_lines
    from vit_finetune.recipe import recipe_of_pictures

    recipe, implied = recipe_of_pictures(recipe)
    config = Config.load(recipe, overrides=[*implied, *(overrides or [])])
    folder = Path(f"{config.run.dir}_check") if output is None else output
    check_output(folder)
    result = run_check(config, level=level, output=folder, say=lambda line: print(line, file=sys.stderr))
    print(json.dumps(result.to_mapping()) if as_json else "\n".join(result_lines(result)))
    if not as_json:
        print(f"report   {folder / 'check.html'}")
    sys.exit(1 if result.verdict == "stop" else 0)


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
