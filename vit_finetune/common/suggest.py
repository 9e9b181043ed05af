"""Words for messages: the closest known ones ("did you mean"), and long lists cut short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_MAX_NAMES_SHOWN = 10


def closest(word: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to `limit` known words that look like `word`, best first.

    Args:
        word: what was asked for.
        known: the words that exist.
        limit: how many to return at the most.

    Returns:
        The closest words; empty where nothing is near.
    """
    return difflib.get_close_matches(word, list(known), n=limit, cutoff=0.6)


def did_you_mean(word: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return `; did you mean 'a' or 'b'?`, or an empty string where nothing is near.

    Args:
        word: what was asked for.
        known: the words that exist.
        limit: how many to offer at the most.
    """
    near = closest(word, known, limit=limit)
    if not near:
        return ""
    return "; did you mean " + " or ".join(repr(name) for name in near) + "?"


def listed(names: Sequence[str], *, none: str = "none") -> str:
    """Return names for a message: the first ten, then how many more.

    Args:
        names: in the order to show them.
        none: what to say where there are none.
    """
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMES_SHOWN]) or none
    more = len(names) - _MAX_NAMES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
