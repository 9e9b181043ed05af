"""The closest known words, for messages that end in "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
