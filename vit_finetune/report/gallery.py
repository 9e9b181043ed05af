"""Pictures worth looking at: confident mistakes, close decisions and confused pairs, with what the model looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from vit_finetune.data.audit.findings import printable
from vit_finetune.pages.thumbnails import thumbnail
from vit_finetune.report.attention import Looking
from vit_finetune.report.measured import Pair, confused_pairs
from vit_finetune.report.pictures import Pictures
from vit_finetune.report.scored import Scored

NUM_WORST = 12
NUM_UNSURE = 12
NUM_PAIRS = 8
_EXAMPLES = 4  # pictures of a pair
_SIDE = 128  # pixels of a thumbnail


@dataclass(frozen=True)
class Choice:
    """Which pictures will be shown, as rows of the scored ones.

    Attributes:
        worst: mistakes, the most confident first.
        unsure: pictures whose two best classes are closest, closest first; those of `worst` are left out.
        pairs: the most frequent confusions with a few pictures of each.
    """

    worst: Sequence[int]
    unsure: Sequence[int]
    pairs: Sequence[tuple[Pair, Sequence[int]]]

    @property
    def rows(self) -> set[int]:
        """All of them."""
        return {*self.worst, *self.unsure, *(row for _, rows in self.pairs for row in rows)}


@dataclass(frozen=True)
class Shown:
    """One picture of the page.

    Attributes:
        name: the last two parts of its path.
        path: all of it.
        label: the true class.
        guess: what the model said.
        confidence: the probability of that.
        margin: by how much that is above the next.
        picture: address of the thumbnail; empty where the picture cannot be shown.
        looked: address of what the model saw, with its attention over it; empty without.
    """

    name: str
    path: str
    label: str
    guess: str
    confidence: float
    margin: float
    picture: str
    looked: str


@dataclass(frozen=True)
class Gallery:
    """The pictures of the page.

    Attributes:
        worst: confident mistakes.
        unsure: close decisions.
        pairs: (true class, guessed class, pictures, examples).
        note: why some or all pictures are not there; empty where all are.
        about_attention: what the overlays are, or why there are none.
    """

    worst: Sequence[Shown]
    unsure: Sequence[Shown]
    pairs: Sequence[tuple[str, str, int, Sequence[Shown]]]
    note: str
    about_attention: str

    @property
    def has_attention(self) -> bool:
        """Whether any picture has an overlay."""
        return any(item.looked for item in (*self.worst, *self.unsure))


def choose(scored: Scored) -> Choice:
    """Return which pictures to show."""
    wrong = np.flatnonzero(~scored.correct)
    worst = _first(wrong, -scored.confidence[wrong], NUM_WORST)
    others = np.setdiff1d(np.arange(len(scored)), worst)
    unsure = _first(others, scored.margin[others], NUM_UNSURE)
    pairs = []
    for pair in confused_pairs(scored)[:NUM_PAIRS]:
        rows = np.flatnonzero((scored.labels == pair.label) & (scored.guesses == pair.guess))
        pairs.append((pair, _first(rows, -scored.confidence[rows], _EXAMPLES)))
    return Choice(worst, unsure, pairs)


def _first(rows: NDArray[np.int64], keys: NDArray[np.float64], most: int) -> list[int]:
    """Return the rows with the smallest keys."""
    chosen: list[int] = rows[np.argsort(keys, kind="stable")[:most]].tolist()
    return chosen


def gallery_of(scored: Scored, choice: Choice, pictures: Pictures, looking: Looking) -> Gallery:
    """Return the pictures that were chosen.

    Args:
        scored: what the model said.
        choice: of `choose`.
        pictures: of the split.
        looking: makes the overlays of mistakes and close decisions.
    """
    seen: dict[int, Shown] = {}
    for row in sorted(choice.rows):
        seen[row] = _shown(scored, row, pictures, looking if row in {*choice.worst, *choice.unsure} else None)
    names = scored.class_names
    note = ""
    if pictures.missing:
        some = "No picture" if pictures.missing == len(seen) else f"{pictures.missing} of {len(seen)} pictures"
        verb = "can be shown" if pictures.missing == len(seen) else "cannot be shown"
        note = f"{some} {verb}: {printable(pictures.reason)}."
    return Gallery(
        worst=[seen[row] for row in choice.worst],
        unsure=[seen[row] for row in choice.unsure],
        pairs=[
            (names[pair.label], names[pair.guess], pair.count, [seen[row] for row in rows])
            for pair, rows in choice.pairs
        ],
        note=note,
        about_attention=looking.told,
    )


def _shown(scored: Scored, row: int, pictures: Pictures, looking: Looking | None) -> Shown:
    image, path = pictures.read(int(scored.indices[row])), str(scored.paths[row])
    return Shown(
        name=printable("/".join(PurePath(path).parts[-2:])),
        path=printable(path),
        label=scored.class_names[scored.labels[row]],
        guess=scored.class_names[scored.guesses[row]],
        confidence=float(scored.confidence[row]),
        margin=float(scored.margin[row]),
        picture="" if image is None else thumbnail(image, _SIDE),
        looked="" if image is None or looking is None else looking.at(image, _SIDE),
    )
