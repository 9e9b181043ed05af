"""A file of arguments, as another trainer writes it -> a recipe that `Config` takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.config import Config
from vit_finetune.migration.hf_trainer import HF, read_hf
from vit_finetune.migration.timm_train import TIMM, read_timm
from vit_finetune.migration.vocabulary import Imported, Note, Reading, Vocabulary
from vit_finetune.recipe import apply_override, read_yaml, write_yaml

ORIGINS: dict[str, tuple[Vocabulary, Callable[[Reading, int], None]]] = {
    "timm": (TIMM, read_timm),
    "hf": (HF, read_hf),
}
# What stands where the arguments say nothing; a run with it ends with the name of what is to be put there.
_PLACEHOLDERS = {"model.pretrained": "CHECKPOINT", "data.root": "PICTURES"}


def import_arguments(
    path: str | Path, *, origin: str, num_processes: int = 1, overrides: Iterable[str] = ()
) -> Imported:
    """Make a recipe of the arguments that another trainer wrote.

    Args:
        path: timm's args.yaml, or the JSON of transformers' TrainingArguments.
        origin: one of `ORIGINS`.
        num_processes: how many processes the other run had, 1 or more; no file of arguments says it, and the global
            batch is made of it.
        overrides: `section.key=value` texts, laid over the recipe.

    Returns:
        The recipe, which `Config.load` takes, and what did not go over.

    Raises:
        RequestError: the file cannot be read, is no such file, or what it asks for is refused here.
    """
    if origin not in ORIGINS:
        raise RequestError(f"--from {origin!r} is not one of {', '.join(ORIGINS)}{did_you_mean(origin, ORIGINS)}")
    if num_processes < 1:
        raise RequestError(f"num_processes is {num_processes}; give 1 or more")
    vocabulary, rules = ORIGINS[origin]
    reading = Reading(_read(Path(path), vocabulary))
    for name, key in vocabulary.copied.items():
        reading.put(key, reading.get(name))
    try:
        rules(reading, num_processes)
    except RequestError:
        raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise RequestError(f"{path} is not as {vocabulary.trainer} writes it: {error}") from None
    for text in overrides:
        apply_override(reading.recipe, text)
    _fill(reading)
    Config.load(reading.recipe)
    notes = (*reading.notes, *_left(reading.values, vocabulary))
    order = {name: place for place, name in enumerate(Config.model_fields)}
    recipe = dict(sorted(reading.recipe.items(), key=lambda item: order[item[0]]))
    return Imported(vocabulary.trainer, recipe, notes, tuple(reading.missing), vocabulary.differs)


def recipe_text(imported: Imported, *, source: str | Path) -> str:
    """Return the recipe as YAML whose head comment says what did not go over.

    Args:
        imported: of `import_arguments`.
        source: the file of arguments, for people.
    """
    head = [f"The options of {imported.trainer} in {source}, as far as they have counterparts.", "", *imported.lines()]
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + write_yaml(imported.recipe)


def _read(path: Path, vocabulary: Vocabulary) -> Mapping[str, Any]:
    """Return the arguments of a file, JSON or YAML.

    Raises:
        RequestError: it cannot be read, or knows none of the trainer's options.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else read_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}") from None
    known = {*vocabulary.copied, *vocabulary.ruled, *vocabulary.left}
    if not isinstance(values, dict) or not known & values.keys():
        raise RequestError(f"{path} holds no options of {vocabulary.trainer}; is it the file of another trainer?")
    return values


def _left(values: Mapping[str, Any], vocabulary: Vocabulary) -> list[Note]:
    """Return the options that ask for something and have no counterpart, and those that are not known at all."""
    notes = []
    for name, value in values.items():
        row = vocabulary.left.get(name)
        if row is not None:
            asked = tuple(value) if isinstance(value, list) else value
            if asked and asked != row.default:
                notes.append(Note(name, value, row.says, row.near))
        elif name not in vocabulary.copied and name not in vocabulary.ruled:
            notes.append(Note(name, value, f"not an option of {vocabulary.trainer} that is known here"))
    return notes


def _fill(reading: Reading) -> None:
    """Put placeholders where the arguments name neither weights nor pictures."""
    data, model = reading.recipe.get("data", {}), reading.recipe.get("model", {})
    lacking = [] if "pretrained" in model else ["model.pretrained"]
    lacking += [] if {"root", "source"} & data.keys() else ["data.root"]
    for key in lacking:
        reading.put(key, _PLACEHOLDERS[key])
        reading.missing.append(f"{key}: {_PLACEHOLDERS[key]} is a placeholder")
