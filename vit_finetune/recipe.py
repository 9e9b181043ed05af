"""Recipes as files: find one by name, read it, lay overrides over it, explain what is wrong with it.

Not the options themselves: those are the fields of `config.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, name -> file.

    An installed wheel holds them inside the package, a checkout beside it.
    """
    here = Path(__file__).parent
    folders = (here / "recipes", here.parent / "recipes")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe given by path, by the name of a shipped one, or by a run's folder.

    Raises:
        RequestError: there is no such recipe; the shipped names are listed.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        return path / "config.yaml"
    shipped = shipped_recipes()
    known = shipped.get(str(name)) or shipped.get(path.name.removesuffix(".yaml") if len(path.parts) == 1 else "")
    if known is None:
        hint = did_you_mean(str(name), shipped)
        raise RequestError(
            f"no recipe {str(name)!r}: neither a file, nor a run folder, nor one of {', '.join(shipped)}{hint}"
        )
    return known


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Return the sections of a recipe as plain values.

    Raises:
        RequestError: it is not there, or it is no YAML mapping.
    """
    path = find_recipe(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{path} holds no sections; a recipe is a mapping such as model: {{...}}, data: {{...}}")
    return values


def apply_override(values: dict[str, Any], text: str) -> None:
    """Lay one `section.key=value` over `values`, which is changed.

    `train.steps` or `train.epochs` replaces whichever of the two was there.

    Raises:
        RequestError: the text has another form.
    """
    path, separator, raw = text.partition("=")
    section, *parents, leaf = path.split(".")
    if not separator or not section or path == leaf:
        raise RequestError(f"override {text!r} is not of the form section.key=value, such as train.epochs=5")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise RequestError(f"the value in {text!r} is not readable YAML") from None
    part = values.setdefault(section, {})
    if section == "train" and leaf in ("steps", "epochs") and isinstance(part, dict):
        part.pop("steps", None)
        part.pop("epochs", None)
    for parent in parents:
        part = part.setdefault(parent, {}) if isinstance(part, dict) else part
    if not isinstance(part, dict):
        raise RequestError(f"cannot lay {text!r} over {part!r}, which holds no keys")
    part[leaf] = _number(value)


def _number(value: object) -> object:
    """Read the text 5e-4 as the number it is; YAML 1.1 wants 5.0e-4."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return pydantic's list as one line per mistake, each with its path and the way out.

    Args:
        error: what validation raised.
        root: the model that was validated; its fields are what keys are compared with.
    """
    lines = list(dict.fromkeys(_explanations(error, root)))
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} mistakes in the configuration:\n" + "\n".join(f"  {line}" for line in lines)


def _explanations(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        # Branches of a union ("function-before[...]", "literal[...]") are pydantic's inner names, not keys.
        names = [str(part) for part in detail["loc"]]
        yield _explain_one(detail, [name for name in names if name.isidentifier() or name.isdigit()], root)


def _explain_one(detail: ErrorDetails, names: list[str], root: type[BaseModel]) -> str:
    path = ".".join(names)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(names[:-1], root)
        return f"{path}: no such key{did_you_mean(names[-1], known) or '; known are ' + ', '.join(known)}"
    if detail["type"] == "missing":
        description = _description(names, root)
        return f"{path}: is required" + (f" ({description})" if description else "")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: got {detail['input']!r}; {message[0].lower()}{message[1:]}"


def _known_keys(names: list[str], root: type[BaseModel]) -> list[str]:
    for name in names:
        root = cast("type[BaseModel]", root.model_fields[name].annotation)
    return list(root.model_fields)


def _description(names: list[str], root: type[BaseModel]) -> str:
    for name in names[:-1]:
        root = cast("type[BaseModel]", root.model_fields[name].annotation)
    return " ".join((root.model_fields[names[-1]].description or "").split())
