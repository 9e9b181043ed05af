"""What a sweep tries: the combinations of a grid, or the ranges of a search, written as overrides are.

Source: AugReg's grid for small data sets, Steiner et al. 2021 (arXiv 2106.10270), table 4: four rates and two lengths,
for SGD.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.recipe import EITHER, apply_override, read_yaml

AUGREG_GRID: Mapping[str, tuple[Any, ...]] = {
    "optimizer.lr": (0.001, 0.003, 0.01, 0.03),
    "train.steps": (500, 2500),
}
_LOG_FROM = 10  # a range that spans a factor of ten is searched by its logarithm
_NOT_SWEPT = ("run.dir", "data.test_split")
_EXAMPLES = {"grid": "optimizer.lr=[0.001,0.003]", "search": "optimizer.lr=1e-5..1e-3 or optimizer.name=[adamw,sgd]"}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: integers where both ends are, by the logarithm where they span ten.

    Attributes:
        low: the smallest.
        high: the largest.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse an empty range.

        Raises:
            RequestError: `low` is not below `high`.
        """
        if not self.low < self.high:
            raise RequestError(f"the range {self.low}..{self.high} is empty; give LOW..HIGH with LOW below HIGH")

    def suggest(self, trial: Any, key: str) -> Any:
        """Return optuna's number for one of its trials."""
        log = self.low > 0 and self.high / self.low >= _LOG_FROM
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=log)
        return trial.suggest_float(key, self.low, self.high, log=log)


Space = Range | tuple[Any, ...]


def read_grid(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Read `section.key=[a,b,...]` texts, or the name `augreg` for its grid.

    Raises:
        RequestError: a text has another form, or a key is given twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        entries = AUGREG_GRID.items() if text == "augreg" else [_read(text, "grid")]
        for key, values in entries:
            if isinstance(values, Range) or not values:
                raise RequestError(f"--grid {text!r} names no values; write a list, such as {_EXAMPLES['grid']}")
            _add(grid, key, values, "grid")
    return grid


def read_search(texts: Iterable[str]) -> dict[str, Space]:
    """Read `section.key=LOW..HIGH` and `section.key=[a,b,...]` texts.

    Raises:
        RequestError: a text has another form, or a key is given twice.
    """
    search: dict[str, Space] = {}
    for text in texts:
        key, space = _read(text, "search")
        if not isinstance(space, Range) and not space:
            raise RequestError(f"--search {text!r} names no values; write {_EXAMPLES['search']}")
        _add(search, key, space, "search")
    return search


def _add(into: dict[str, Any], key: str, space: Space, option: str) -> None:
    if key in into:
        raise RequestError(f"--{option} names {key} twice; give all of its values in one list")
    into[key] = space


def _read(text: str, option: str) -> tuple[str, Space]:
    """Return the key and the values of one text."""
    key, separator, raw = text.partition("=")
    problem = RequestError(f"--{option} {text!r} is not of the form {_EXAMPLES[option]}")
    if not separator or not all(key.split(".")) or "." not in key:
        raise problem
    low, dots, high = raw.partition("..")
    try:
        if dots:
            ends = [read_yaml(low), read_yaml(high)]
            if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends):
                raise problem
            return key, Range(*ends)
        values = read_yaml(raw)
    except yaml.YAMLError:
        raise problem from None
    if not isinstance(values, list):
        raise problem
    return key, tuple(values)


def suggest(trial: Any, search: Mapping[str, Space]) -> dict[str, Any]:
    """Return optuna's values for one of its trials."""
    return {
        key: space.suggest(trial, key) if isinstance(space, Range) else trial.suggest_categorical(key, space)
        for key, space in search.items()
    }


def corners(search: Mapping[str, Space]) -> dict[str, tuple[Any, ...]]:
    """Return the grid of a search's extreme values: where they are valid, what lies between is."""
    return {key: (space.low, space.high) if isinstance(space, Range) else space for key, space in search.items()}


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values; the last key varies fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def check_keys(keys: Iterable[str]) -> None:
    """Refuse keys that a sweep decides itself, and keys that replace each other.

    Raises:
        RequestError: there is such a key.
    """
    named = set(keys)
    own = sorted(named & {*_NOT_SWEPT})
    if own:
        raise RequestError(f"{', '.join(own)} is the sweep's own; sweep something else")
    for section, names in EITHER.items():
        both = [key for key in (f"{section}.{name}" for name in names) if key in named]
        if len(both) > 1:
            raise RequestError(f"{' and '.join(both)} replace each other; sweep one of them")


def trial_config(config: Config, values: Mapping[str, Any], *, run_dir: str) -> Config:
    """Return a recipe with a trial's values laid over it, without a test split.

    Raises:
        RequestError: the values make no valid recipe; the message names them.
    """
    plain: dict[str, Any] = config.model_dump(mode="json")
    try:
        for key, value in values.items():
            apply_override(plain, f"{key}={json.dumps(value)}")
        plain["run"] |= {"dir": run_dir, "report": "off"}
        plain["data"]["test_split"] = None
        return Config.load(plain)
    except RequestError as error:
        raise RequestError(f"{told(values)}: {error}") from None


def told(values: Mapping[str, Any]) -> str:
    """Return a trial's values for people."""
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )
