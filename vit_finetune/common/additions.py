"""What a program adds to the package's own choices, by name: ways to tune and figures. Empty until somebody does.

A recipe may name what was added, and so may a run that goes on; the program that starts it has to add it first. The
command line knows no additions. The functions that add are in the rooms that know the package's own names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError

# From a network with its new head to the names of the parameters that train.
TuningMode: TypeAlias = Callable[[Any], Collection[str]]
# From labels [n] and probabilities [n, K] of a whole split to a figure of which more is better.
Metric: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.float32]], float]

ADDED_TUNING_MODES: dict[str, TuningMode] = {}
ADDED_METRICS: dict[str, Metric] = {}

_Added = TypeVar("_Added")


def add(table: dict[str, _Added], name: str, value: _Added, *, kind: str, own: Collection[str]) -> None:
    """Enter a function under its name.

    Args:
        table: one of those above.
        name: a Python name.
        value: what it stands for.
        kind: what it is, for messages.
        own: names that the package has itself.

    Raises:
        RequestError: the name is none, or taken.
    """
    if not name.isidentifier():
        raise RequestError(f"{name!r} is no name for a {kind}; use letters, digits and _")
    if name in own or table.get(name, value) is not value:
        raise RequestError(f"there is a {kind} {name!r} already; choose another name")
    table[name] = value
