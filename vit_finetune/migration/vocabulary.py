"""The words in which another trainer's options are laid beside ours, and the reading of a file by them.

A `Vocabulary` is data, one per trainer. Options are copied, ruled (a function of the trainer's module decides over
several at once) or left (they have no counterpart; the reason and the nearest key say what to do). The documentation's
tables are made from the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Ruled(NamedTuple):
    """An option that becomes other keys, or needs none."""

    keys: str
    says: str


class Left(NamedTuple):
    """An option without a counterpart: why, the nearest key, and the value at which it asks for nothing."""

    says: str
    near: str = ""
    default: Any = None


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The options of one trainer.

    Attributes:
        trainer: its name, for people.
        copied: option -> our key, which takes the value as it is; null is left out.
        ruled: option -> the keys that it becomes, and how.
        left: option -> why it has no counterpart.
        differs: what acts otherwise in every run, whatever the options say.
    """

    trainer: str
    copied: Mapping[str, str]
    ruled: Mapping[str, Ruled]
    left: Mapping[str, Left]
    differs: tuple[str, ...]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (option, our keys, how or why not) of all options, sorted within the three kinds."""
        copied = [(name, key, "as it is") for name, key in sorted(self.copied.items())]
        ruled = [(name, rule.keys, rule.says) for name, rule in sorted(self.ruled.items())]
        left = [
            (name, row.near and f"none; nearest is {row.near}", row.says) for name, row in sorted(self.left.items())
        ]
        return [*copied, *ruled, *left]


class Note(NamedTuple):
    """An option that did not go over, or not wholly."""

    name: str
    value: Any
    reason: str
    near: str = ""

    def line(self) -> str:
        """Return it as one line."""
        near = f"; nearest: {self.near}" if self.near else ""
        return f"{self.name}: {self.value!r}  {self.reason}{near}"


@dataclass(frozen=True)
class Imported:
    """A recipe made of another trainer's arguments.

    Attributes:
        trainer: whose they were.
        recipe: section -> key -> value.
        notes: the options without a counterpart, or taken over in part.
        missing: what the arguments do not say and a run needs.
        differs: what acts otherwise in every run.
    """

    trainer: str
    recipe: dict[str, dict[str, Any]]
    notes: tuple[Note, ...]
    missing: tuple[str, ...]
    differs: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what a person has to know, as lines; the recipe carries them as its head comment."""
        parts = (
            (f"without a counterpart, or not wholly ({len(self.notes)})", [note.line() for note in self.notes]),
            ("not said by the arguments; fill in before a run", self.missing),
            (f"acts otherwise than {self.trainer}, whatever the arguments", self.differs),
        )
        return [line for title, rows in parts if rows for line in (f"{title}:", *(f"  {row}" for row in rows))]


@dataclass
class Reading:
    """Another trainer's values while they are read: what was put becomes the recipe."""

    values: Mapping[str, Any]
    recipe: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value; where the file lacks it or says null, the default."""
        value = self.values.get(name)
        return default if value is None else value

    def put(self, key: str, value: Any) -> None:
        """Set one of our keys; null sets nothing."""
        section, _, leaf = key.partition(".")
        if value is not None:
            self.recipe.setdefault(section, {})[leaf] = value

    def note(self, name: str, reason: str, near: str = "") -> None:
        """Say that an option did not go over, or not wholly."""
        self.notes.append(Note(name, self.values.get(name), reason, near))
