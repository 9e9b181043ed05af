"""Columns of a table: which holds what, and what its cells say, wherever the table comes from.

Every error names the row and the column. Class columns that declare their names are hub.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.data.labels import Label

LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target")
PATH_NAMES = ("path", "image_path", "file_path", "filepath", "file_name", "filename", "file", "image", "name")
Where = Callable[[int], str]


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called.

    Attributes:
        image: paths or pictures; None finds the only one.
        label: the classes; None finds the only one.
        split: the split of each row; None takes `split` where a text table has it.
        group: what each row belongs to, if anything reads it.
        time: when each row was taken, if anything reads it.
        label_separator: parts the classes in a cell of text; None: a cell is one class.
        weight: what each row weighs in the training loss, if anything.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    time: str | None = None
    label_separator: str | None = None
    weight: str | None = None

    def of_split(self, name: str, train: str) -> Columns:
        """Return the columns that are read of a split: weights are for training, and others need not have them."""
        return self if name == train else replace(self, weight=None)


@dataclass(frozen=True)
class SplitNames:
    """The splits that are wanted of a table.

    Attributes:
        train: its name.
        val: the names that it may have; none: no val.
        test: its name; None: no test.
    """

    train: str
    val: tuple[str, ...]
    test: str | None

    def find(self, source: str, known: Collection[str]) -> tuple[str, str | None, str | None]:
        """Return the names of train, val and test in a table; None for what it does not have or nobody wants.

        Args:
            source: what the table is called.
            known: its splits.

        Raises:
            RequestError: a split that was asked for by name is not there.
        """
        found = next((name for name in self.val if name in known), None)
        asked = [self.train, self.test]
        if len(self.val) == 1:  # one name: it was asked for, and is none of the usual ones
            asked.append(self.val[0])
        for name in asked:
            if name is not None and name not in known:
                raise RequestError(
                    f"{source} has no split {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
                )
        return self.train, found, self.test


def existing(source: str, column: str, known: Sequence[str]) -> str:
    """Return a column that was asked for.

    Raises:
        RequestError: the table does not have it.
    """
    if column not in known:
        raise RequestError(f"{source} has no column {column!r}{did_you_mean(column, known)}; it has {', '.join(known)}")
    return column


def only(source: str, candidates: Sequence[str], known: Sequence[str], *, what: str, option: str) -> str:
    """Return the only candidate for a column.

    Raises:
        RequestError: there is none, or a choice; the option that names it is told.
    """
    if len(candidates) != 1:
        which = f"could be {', '.join(candidates)}" if candidates else "is none that we recognise"
        raise RequestError(
            f"{source}: the column of {what} {which}; name it with data.{option}, one of {', '.join(known)}"
        )
    return candidates[0]


def labels_of(values: Iterable[Any], where: Where, column: str, *, separator: str | None = None) -> list[Label]:
    """Return the class, or the tuple of classes, that each cell says; a number is its own name.

    Args:
        values: strings, integers, or lists of them.
        where: what a row is called.
        column: the column's name.
        separator: parts the classes in a string; then every cell is a set of classes, and an empty one is none.

    Raises:
        RequestError: a cell is empty, holds something else, or names a class twice.
    """
    labels: list[Label] = []
    for row, value in enumerate(values):
        if separator is not None and isinstance(value, str):
            value = [name.strip() for name in value.split(separator) if name.strip()]  # noqa: PLW2901
        names = value if isinstance(value, list) else [value]
        if any(name is None or name == "" for name in names):
            raise RequestError(f"{where(row)} has no class in column {column!r}; remove the row or label it")
        if not all(isinstance(name, int | str) for name in names):
            raise RequestError(
                f"{where(row)} has {value!r} in column {column!r}; classes are strings or integers, or lists of them"
            )
        found = tuple(map(str, names))
        check_once(found, value, where(row), column)
        labels.append(found if isinstance(value, list) else found[0])
    return labels


def check_once(names: tuple[str, ...], value: Any, where: str, column: str) -> None:
    """Refuse a list that names a class twice, as rows of zeros and ones do.

    Raises:
        RequestError: it does.
    """
    if len(set(names)) != len(names):
        raise RequestError(
            f"{where} has a class twice in column {column!r}: {value}; a list names the classes of a picture, each "
            "once (for rows of zeros and ones give an ImageSet with labels [N, K] from Python)"
        )


def groups_of(values: Iterable[Any], where: Where, column: str) -> list[str]:
    """Return the group that each cell says, as text.

    Raises:
        RequestError: a cell is empty.
    """
    groups = []
    for row, value in enumerate(values):
        if value is None or value == "":
            raise RequestError(f"{where(row)} has nothing in column {column!r}; every picture needs a group")
        groups.append(str(value))
    return groups


def weights_of(values: Iterable[Any], where: Where, column: str) -> NDArray[np.float64]:
    """Return the weight that each cell says.

    Args:
        values: numbers, or numbers as text.
        where: what a row is called.
        column: the column's name.

    Returns:
        [N], finite and at least 0.

    Raises:
        RequestError: a cell is something else.
    """
    weights = np.empty(len(cells := list(values)))
    for row, value in enumerate(cells):
        try:
            weights[row] = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            weights[row] = math.nan
        if not 0 <= weights[row] < math.inf:
            raise RequestError(
                f"{where(row)} has {value!r} in column {column!r}; a weight is a finite number of at least 0, and "
                "every training picture has one"
            )
    return weights


def beside(columns: Columns, cells: Callable[[str], Iterable[Any]], where: Where) -> dict[str, Any]:
    """Return what a source tells of each picture beside its class, as the fields of `Part`.

    Args:
        columns: which columns tell it.
        cells: returns the cells of a column.
        where: what a row is called.

    Raises:
        RequestError: there is no such column, or a cell says something else.
    """
    readers: dict[str, tuple[str | None, Callable[..., Any]]] = {
        "groups": (columns.group, groups_of),
        "times": (columns.time, times_of),
        "weights": (columns.weight, weights_of),
    }
    return {
        name: None if column is None else read(cells(column), where, column) for name, (column, read) in readers.items()
    }


def times_of(values: Iterable[Any], where: Where, column: str) -> NDArray[np.float64]:
    """Return the time that each cell says.

    Args:
        values: numbers, dates, or either as text (ISO 8601; without a zone it is UTC).
        where: what a row is called.
        column: the column's name.

    Returns:
        [N] seconds since 1970 of dates, numbers as they are.

    Raises:
        RequestError: a cell is neither, or some are numbers and others dates.
    """
    times = np.empty(len(cells := list(values)))
    kinds = set()
    for row, value in enumerate(cells):
        try:
            times[row], kind = _time(value)
        except (TypeError, ValueError):
            raise RequestError(
                f"{where(row)} has {value!r} in column {column!r}; a time is a number or a date such as "
                "2024-05-31T12:00"
            ) from None
        kinds.add(kind)
        if len(kinds) > 1:
            raise RequestError(f"{where(row)} has {value!r} in column {column!r}, which mixes numbers and dates")
    return times


def _time(value: Any) -> tuple[float, str]:
    """Return a time as a number, and whether it was a number or a date."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = datetime.fromisoformat(value.strip())
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return aware.timestamp(), "date"
    number = float(value)
    if not np.isfinite(number):
        raise ValueError
    return number, "number"
