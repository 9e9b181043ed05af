"""The confusion matrix, readable at 3 classes and at 1,000: a table with numbers, and of many classes a picture too."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_finetune.pages.thumbnails import data_uri
from vit_finetune.report.measured import Pair, confused_pairs
from vit_finetune.report.scored import Scored

MOST_IN_TABLE = 20  # classes of a table with numbers
_MOST_PIXELS = 500  # a side of the picture of the whole matrix
_INK = (58, 110, 165)  # seen on white and on black


@dataclass(frozen=True)
class Confusion:
    """What the page shows of the matrix.

    Attributes:
        names: the classes of the table, in its order.
        rows: pictures [true][guessed] of those classes.
        shades: how dark each cell is, 0 to 8.
        elsewhere: of each row, pictures that were taken for a class outside of the table.
        picture: address of a picture of the whole matrix; empty where the table is all of it.
        classes_a_pixel: of that picture.
        num_classes: of the whole.
        pairs: wrong pairs, the most frequent first.
    """

    names: tuple[str, ...]
    rows: Sequence[Sequence[int]]
    shades: Sequence[Sequence[int]]
    elsewhere: Sequence[int]
    picture: str
    classes_a_pixel: int
    num_classes: int
    pairs: Sequence[Pair]


def confusion_of(scored: Scored) -> Confusion:
    """Return the confusion matrix of scored pictures.

    Of many classes the table has those that are confused most, with confused ones beside each other.
    """
    num_classes, pairs = len(scored.class_names), confused_pairs(scored)
    is_whole = num_classes <= MOST_IN_TABLE
    chosen = list(range(num_classes)) if is_whole else neighbours(pairs, MOST_IN_TABLE)
    place = np.full(num_classes, -1)
    place[chosen] = np.arange(len(chosen))
    of_label, of_guess = place[scored.labels], place[scored.guesses]
    inside = (of_label >= 0) & (of_guess >= 0)
    size = len(chosen)
    cells = np.bincount(of_label[inside] * size + of_guess[inside], minlength=size * size).reshape(size, size)
    elsewhere = np.bincount(of_label[(of_label >= 0) & (of_guess < 0)], minlength=size)
    totals = np.maximum(1, cells.sum(axis=1, keepdims=True) + elsewhere[:, None])
    shades = np.where(cells > 0, np.clip(np.ceil(8 * np.sqrt(cells / totals)), 1, 8), 0).astype(int)
    picture, each = ("", 1) if is_whole else _whole_matrix(scored, num_classes)
    names = tuple(scored.class_names[k] for k in chosen)
    return Confusion(names, cells.tolist(), shades.tolist(), elsewhere.tolist(), picture, each, num_classes, pairs)


def neighbours(pairs: Sequence[Pair], most: int) -> list[int]:
    """Return the classes that are confused most, each beside the one it is confused with most.

    Args:
        pairs: the most frequent first.
        most: how many classes.
    """
    weight: dict[int, dict[int, int]] = {}
    for pair in pairs[: 50 * most]:
        for one, other in ((pair.label, pair.guess), (pair.guess, pair.label)):
            row = weight.setdefault(one, {})
            row[other] = row.get(other, 0) + pair.count
    queue = [k for pair in pairs for k in (pair.label, pair.guess)]
    chosen: list[int] = []
    for start in queue:
        following: int | None = start if start not in chosen else None
        while following is not None and len(chosen) < most:
            chosen.append(following)
            open_ones = {k: count for k, count in weight.get(following, {}).items() if k not in chosen}
            best = max(open_ones, key=lambda k: (open_ones[k], -k), default=None)
            # A chain goes on as long as it is worth more than the next pair in the queue.
            following = best if best is not None and open_ones[best] > 1 else None
        if len(chosen) >= most:
            break
    return chosen


def _whole_matrix(scored: Scored, num_classes: int) -> tuple[str, int]:
    """Return a picture of all classes, true ones downwards, and how many classes one pixel stands for."""
    each = -(-num_classes // _MOST_PIXELS)
    side = -(-num_classes // each)
    counts = np.bincount((scored.labels // each) * side + scored.guesses // each, minlength=side * side)
    share = counts.reshape(side, side) / np.maximum(1, counts.reshape(side, side).sum(axis=1, keepdims=True))
    return _as_picture(share), each


def _as_picture(share: NDArray[np.float64]) -> str:
    """Return shares in [0, 1] as a picture of one ink whose opacity says how large they are."""
    opacity = np.where(share > 0, 40 + 215 * np.sqrt(share), 0).round().astype(np.uint8)
    ink = np.full((*share.shape, 3), _INK, dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(np.dstack([ink, opacity])).save(content, "PNG", optimize=True)
    return data_uri(content.getvalue(), "image/png")
