"""What there is to start from: `recipes` lists, shows and copies what ships, and imports other trainers' arguments."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vit_finetune.cli.app import Overwrite, app

Origin = StrEnum("Origin", ["TIMM", "HF"])
Name = Annotated[str, typer.Argument(help="A name that `recipes list` prints.")]

recipes = typer.Typer(
    help="List the recipes and scripts that ship, show or copy one, or import another trainer's arguments.",
    rich_markup_mode=None,
)
app.add_typer(recipes, name="recipes")


@recipes.callback(invoke_without_command=True)
def or_list(context: typer.Context) -> None:
    """List the recipes that ship, show or copy one, or import another trainer's arguments.

    Example: vit-finetune recipes import args.yaml --from timm --output mine.yaml
    """
    if context.invoked_subcommand is None:
        list_shipped()


@recipes.command("list")
def list_shipped() -> None:
    """List the recipes and scripts that ship with the package.

    Example: vit-finetune recipes list
    """
    from vit_finetune.shipped import listing

    print("\n".join(listing()))


@recipes.command()
def show(
    name: Name,
    *,
    resolved: Annotated[bool, typer.Option("--resolved", help="With all keys that a preset inherits.")] = False,
) -> None:
    """Print a recipe or script.

    Example: vit-finetune recipes show vit_paper/cifar10 --resolved
    """
    from vit_finetune.shipped import find_shipped

    found = find_shipped(name)
    if not resolved:
        print(found.read_text(encoding="utf-8"), end="")
        return
    from vit_finetune.recipe import read_recipe, write_yaml

    print(write_yaml(read_recipe(found)), end="")


@recipes.command()
def copy(
    name: Name,
    dst: Annotated[Path | None, typer.Argument(metavar="[DEST]", help="A file or a folder; this folder.")] = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Copy a recipe or script to edit it.

    Example: vit-finetune recipes copy vit_paper/cifar10 mine.yaml
    """
    from vit_finetune.shipped import copy_shipped

    print(copy_shipped(name, dst, overwrite=overwrite))


@recipes.command("import")
def import_recipe(
    arguments: Annotated[Path, typer.Argument(help="timm's args.yaml, or the JSON of TrainingArguments.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    origin: Annotated[Origin, typer.Option("--from", help="Whose arguments: timm's train.py or the HF Trainer.")],
    output: Annotated[Path | None, typer.Option(help="The recipe to write; printed if not given.")] = None,
    num_processes: Annotated[int, typer.Option(min=1, help="How many processes (GPUs) that run had.")] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Make a recipe of another trainer's arguments, and say what has no counterpart.

    Example: vit-finetune recipes import args.yaml --from timm --output mine.yaml data.root=./photos
    """
    from vit_finetune.common.files import write_text
    from vit_finetune.migration import import_arguments, recipe_text
    from vit_finetune.shipped import refuse_to_replace

    if output is not None:
        refuse_to_replace(output, overwrite=overwrite)
    imported = import_arguments(arguments, origin=origin, num_processes=num_processes, overrides=overrides or [])
    text = recipe_text(imported, source=arguments)
    if output is None:
        print(text, end="")
        return
    write_text(output, text)
    print("\n".join(imported.lines()), file=sys.stderr)
    print(output)
