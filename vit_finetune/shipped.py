"""What ships with the package to start from: recipes (YAML) and scripts (Python), to list, show and copy.

Not how a recipe is read: that is recipe.py.
"""

from __future__ import annotations

import ast
from itertools import takewhile
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_text
from vit_finetune.common.suggest import did_you_mean

_SCHEMA_LINE = "# yaml-language-server:"


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, name -> file; a preset is called recipe/preset."""
    return {path.with_suffix("").as_posix(): folder / path for folder, path in _files("**/*.yaml")}


def shipped_scripts() -> dict[str, Path]:
    """Return the scripts that come with the package, name -> file, such as k_fold.py."""
    return {path.as_posix(): folder / path for folder, path in _files("*.py")}


def listing() -> list[str]:
    """Return a line for each recipe and script that ships: its name and what it is for."""
    found = {**shipped_recipes(), **shipped_scripts()}
    width = max((len(name) for name in found), default=0)
    return [f"{name:<{width}}  {summary_of(path)}" for name, path in found.items()]


def summary_of(path: Path) -> str:
    """Return the first sentence of a recipe's head comment, or the first line of a script's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    comments = (line.removeprefix("#").strip() for line in text.splitlines() if not line.startswith(_SCHEMA_LINE))
    sentence, stop, _ = " ".join(takewhile(bool, comments)).partition(". ")
    return sentence + stop.strip()


def find_shipped(name: str) -> Path:
    """Return the file of a shipped recipe or script.

    Args:
        name: as `vit-finetune recipes list` spells it; `.yaml` may follow.

    Raises:
        RequestError: there is none of that name.
    """
    known = {**shipped_recipes(), **shipped_scripts()}
    found = known.get(name.removesuffix(".yaml"))
    if found is None:
        raise RequestError(
            f"no recipe or script {name!r} ships with this package{did_you_mean(name, known)}; "
            "`vit-finetune recipes list` names them"
        )
    return found


def copy_shipped(name: str, dst: Path | None = None, *, overwrite: bool = False) -> Path:
    """Copy a shipped recipe or script to edit it.

    Args:
        name: as `find_shipped` takes it.
        dst: the file to write, or a folder to write it into; None writes into the current folder.
        overwrite: replace an older file.

    Returns:
        The file that was written. The line that leads editors to the schema beside the original is left out.

    Raises:
        RequestError: there is none of that name, or `dst` exists and is not to be replaced.
    """
    source = find_shipped(name)
    target = dst or Path()
    if target.is_dir():
        target /= source.name
    refuse_to_replace(target, overwrite=overwrite)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(target, "".join(line for line in lines if not line.startswith(_SCHEMA_LINE)))
    return target


def refuse_to_replace(target: Path, *, overwrite: bool) -> None:
    """Refuse to write over a file unasked.

    Raises:
        RequestError: `target` exists and is not to be replaced.
    """
    if target.exists() and not overwrite:
        raise RequestError(f"{target} exists already; give another place or --overwrite")


def _files(pattern: str) -> list[tuple[Path, Path]]:
    """Return (folder, path below it) of what ships: a wheel holds it inside the package, a checkout beside it."""
    here = Path(__file__).parent
    folders = (here / "recipes", here.parent / "recipes")
    return [(folder, path.relative_to(folder)) for folder in folders for path in sorted(folder.glob(pattern))]
