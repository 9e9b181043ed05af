"""Recipes as files: find one by name, read it, lay overrides over it, check it and explain what is wrong with it.

Not the options themselves: those are the fields of `config/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.shipped import shipped_recipes

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]
_TAG = "tag:yaml.org,2002:"
_TRUTH = (f"{_TAG}bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"))
# Keys of a section of which one is given: a later one takes the place of an earlier one.
EITHER = {
    "data": ("root", "source"),
    "tuning": ("probe_steps", "probe_epochs"),
    "train": ("steps", "epochs", "budget"),
    "schedule": ("warmup_steps", "warmup_epochs"),
    "evaluation": ("every_steps", "every_epochs"),
}
_NUMBER = (
    f"{_TAG}float",
    re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
)


def _with_core_rules(resolvers: _Resolvers, *, without: tuple[str, ...]) -> _Resolvers:
    """Return PyYAML's rules for plain words, less those of the tags in `without`, plus YAML 1.2's two."""
    rules = {first: [rule for rule in old if rule[0] not in without] for first, old in resolvers.items()}
    for first in "tTfF":
        rules.setdefault(first, []).append(_TRUTH)
    for first in "-+.0123456789":
        rules.setdefault(first, []).append(_NUMBER)
    return rules


class _Reader(yaml.SafeLoader):
    """YAML 1.2's plain words: 5e-4 is a number and `no` a word; PyYAML's 1.1 reads a word and False."""

    yaml_implicit_resolvers = _with_core_rules(
        yaml.SafeLoader.yaml_implicit_resolvers, without=tuple(_TAG + name for name in ("bool", "float", "timestamp"))
    )


class _Writer(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would not read as a word."""

    yaml_implicit_resolvers = _with_core_rules(yaml.SafeDumper.yaml_implicit_resolvers, without=())


def read_yaml(text: str) -> Any:
    """Return what YAML text says, as plain values."""
    return yaml.load(text, Loader=_Reader)  # noqa: S506 - a SafeLoader with other rules for plain words


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML text, in their order."""
    return yaml.dump(values, Dumper=_Writer, sort_keys=False)


class Section(BaseModel):
    """What every section shares: frozen, no unknown keys, no silent conversion of types, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Check plain values.

        Args:
            values: key -> value; lists may stand for tuples.

        Raises:
            RequestError: some keys or values are wrong; all are listed, each with its path.
        """
        try:
            return cls.model_validate(plain(values), strict=True)
        except ValidationError as error:
            raise RequestError(explain(error, cls)) from None


def plain(value: Any) -> Any:
    """Return a copy in which mappings are dicts and lists are tuples, all the way down."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(part) for part in value)
    return value


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
    known = shipped.get(path.as_posix().removesuffix(".yaml"))
    if known is None:
        hint = did_you_mean(str(name), shipped)
        raise RequestError(
            f"no recipe {str(name)!r}: neither a file, nor a run folder, nor one of {', '.join(shipped)}{hint}"
        )
    return known


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Return the sections of a recipe as plain values, laid over those of the recipe that it `extends`, if any.

    Raises:
        RequestError: a recipe is not there, is no YAML mapping, or extends itself.
    """
    return _read_file(find_recipe(name), above=())


def _read_file(path: Path, *, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the sections of a file that the files `above` lead to."""
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise RequestError(f"{path} holds no sections; a recipe is a mapping such as model: {{...}}, data: {{...}}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise RequestError(f"{path} extends {base!r}; give the name of a shipped recipe, or a file beside this one")
    beside = path.parent / base
    found = beside if beside.is_file() else shipped_recipes().get(base) or find_recipe(base)
    chain = (*above, path.resolve())
    if found.resolve() in chain:
        raise RequestError(f"{path} extends {base}, which leads back to it")
    merged = _read_file(found, above=chain)
    for section, keys in values.items():
        if isinstance(keys, dict) and isinstance(merged.get(section), dict):
            for key, value in keys.items():
                _lay(merged[section], section, key, value)
        else:
            merged[section] = keys
    return merged


def _lay(part: dict[str, Any], section: str, key: str, value: Any) -> None:
    """Set a key of a section; of keys that exclude each other, the new one replaces the others."""
    if value is not None and key in (group := EITHER.get(section, ())):
        for other in group:
            part.pop(other, None)
    old = part.get(key)
    part[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value


def recipe_of_pictures(name: str) -> tuple[str, list[str]]:
    """Return the recipe that a command names, and the overrides that go with it.

    Args:
        name: what `find_recipe` takes, or a folder of pictures: that is the recipe image_folder on this folder, into
            runs/NAME_OF_THE_FOLDER.
    """
    path = Path(name)
    if not path.is_dir() or (path / "config.yaml").is_file() or name in shipped_recipes():
        return name, []
    root, run_dir = (
        yaml.safe_dump(str(part), width=2**16).splitlines()[0] for part in (path, Path("runs", path.resolve().name))
    )
    return "image_folder", [f"data.root={root}", f"run.dir={run_dir}"]


def apply_override(values: dict[str, Any], text: str) -> None:
    """Lay one `section.key=value` over `values`, which is changed.

    Of keys that exclude each other, such as `train.steps` and `train.epochs`, the new one replaces the old.

    Raises:
        RequestError: the text has another form.
    """
    path, separator, raw = text.partition("=")
    section, *parents, leaf = keys = path.split(".") if "." in path else ["", ""]
    if not separator or not all(keys):
        raise RequestError(f"override {text!r} is not of the form section.key=value, such as train.epochs=5")
    try:
        value = read_yaml(raw)
    except yaml.YAMLError:
        raise RequestError(f"the value in {text!r} is not readable YAML") from None
    part = values.setdefault(section, {})
    for parent in parents:
        part = part.setdefault(parent, {}) if isinstance(part, dict) else part
    if not isinstance(part, dict):
        raise RequestError(f"cannot lay {text!r} over {part!r}, which holds no keys")
    if parents:
        part[leaf] = value
    else:
        _lay(part, section, leaf, value)


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return pydantic's list as one line per mistake, each with its path and the way out.

    Args:
        error: what validation raised.
        root: the model that was validated; its fields are what keys are compared with.
    """
    told: dict[tuple[str, str], list[str]] = {}
    for detail in error.errors(include_url=False):
        path, got, text = _explain_one(detail, root)
        # Two texts about one value are the branches of a union: "a valid integer or 'auto'".
        texts = told.setdefault((path, got), [])
        texts.append(text.removeprefix("input should be ") if texts else text)
    lines = [f"{path}: {got}{' or '.join(dict.fromkeys(texts))}" for (path, got), texts in told.items()]
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} mistakes in the configuration:\n" + "\n".join(f"  {line}" for line in lines)


def _explain_one(detail: ErrorDetails, root: type[BaseModel]) -> tuple[str, str, str]:
    """Return the path of a mistake, what was got where that helps, and what is wrong with it."""
    keys, section = _keys(detail, root)
    path = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        known = list(section.model_fields)
        return path, "", f"no such key{did_you_mean(keys[-1], known) or '; known are ' + ', '.join(known)}"
    if detail["type"] == "missing":
        field = section.model_fields.get(keys[-1])
        description = " ".join(((field and field.description) or "").split())
        return path, "", "is required" + (f" ({description})" if description else "")
    if detail["type"] == "value_error":
        return path, "", detail["msg"].removeprefix("Value error, ")
    message = detail["msg"][0].lower() + detail["msg"][1:].replace(" after validation", "")
    # In the words of YAML rather than of Python.
    message = re.sub(r"dictionary or instance of \w+", "mapping of keys", message).replace("tuple", "list")
    value = detail["input"]
    got = list(value) if isinstance(value, tuple) else value
    return path, f"got {got!r}; ", message


def _keys(detail: ErrorDetails, root: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """Return the keys and places that lead to a mistake, and the section that the last key belongs to.

    Below a field, pydantic names the branches of a union ("constrained-int"), which are no keys.
    """
    keys: list[str] = []
    section = root
    inner: type[BaseModel] | None = root
    for part in detail["loc"]:
        if isinstance(part, int):
            keys.append(str(part))
        elif inner is not None:
            keys.append(part)
            section, field = inner, inner.model_fields.get(part)
            kinds = (
                (field.annotation, *get_args(field.annotation)) if field else ()
            )  # a section, or one that may be null
            inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
    return keys, section
