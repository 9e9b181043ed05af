"""Pictures worth looking at: confident mistakes, close decisions and confused pairs, with what the model looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_finetune.data.audit.findings import printable
from vit_finetune.pages.thumbnails import thumbnail
from vit_finetune.report.attention import Looking
from vit_finetune.report.measured import Pair, confused_pairs
from vit_finetune.report.pictures import Pictures
from vit_finetune.report.scored import Scored, ScoredSets

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


class Thumbnails(NamedTuple):
    """Addresses of a picture and of what the model looked at in it; each empty where it cannot be shown."""

    picture: str
    looked: str


@dataclass(frozen=True)
class Shown:
    """One picture of the page.

    Attributes:
        name: the last two parts of its path.
        path: all of it.
        label: the true class, or all of them.
        guess: what the model said, or the label that is in question.
        confidence: the probability of that.
        picture: address of the thumbnail; empty where the picture cannot be shown.
        looked: address of what the model saw, with its attention over it; empty without.
    """

    name: str
    path: str
    label: str
    guess: str
    confidence: float
    picture: str
    looked: str

    @classmethod
    def of(
        cls, scored: Scored | ScoredSets, row: int, seen: Thumbnails, *, label: str, guess: str, confidence: float
    ) -> Shown:
        """Return one of the scored pictures.

        Args:
            scored: what the model said.
            row: of the picture.
            seen: of the picture.
            label: the true class, or all of them.
            guess: what the model said, or the label that is in question.
            confidence: the probability of that.
        """
        path = str(scored.paths[row])
        name = printable("/".join(PurePath(path).parts[-2:]))
        return cls(name, printable(path), label, guess, confidence, picture=seen.picture, looked=seen.looked)


@dataclass(frozen=True)
class Gallery:
    """The pictures of the page.

    Attributes:
        worst: confident mistakes.
        unsure: close decisions.
        pairs: (true class, guessed class, pictures, examples).
        labels: of several classes a picture: (label, pictures wrongly said to have it, pictures that it was missed in).
        note: why some or all pictures are not there; empty where all are.
        about_attention: what the overlays are, or why there are none.
    """

    note: str
    about_attention: str
    worst: Sequence[Shown] = ()
    unsure: Sequence[Shown] = ()
    pairs: Sequence[tuple[str, str, int, Sequence[Shown]]] = ()
    labels: Sequence[tuple[str, Sequence[Shown], Sequence[Shown]]] = ()

    @property
    def has_attention(self) -> bool:
        """Whether any picture has an overlay."""
        of_labels = [item for _, wrong, missed in self.labels for item in (*wrong, *missed)]
        return any(item.looked for item in (*self.worst, *self.unsure, *of_labels))


def choose(scored: Scored) -> Choice:
    """Return which pictures to show."""
    wrong = np.flatnonzero(~scored.correct)
    worst = first_rows(wrong, -scored.confidence[wrong], NUM_WORST)
    others = np.setdiff1d(np.arange(len(scored)), worst)
    unsure = first_rows(others, scored.margin[others], NUM_UNSURE)
    pairs = []
    for pair in confused_pairs(scored)[:NUM_PAIRS]:
        rows = np.flatnonzero((scored.labels == pair.label) & (scored.guesses == pair.guess))
        pairs.append((pair, first_rows(rows, -scored.confidence[rows], _EXAMPLES)))
    return Choice(worst, unsure, pairs)


def first_rows(rows: NDArray[np.int64], keys: NDArray[np.float64], most: int) -> list[int]:
    """Return the rows with the smallest keys, smallest first.

    Args:
        rows: to choose from [m].
        keys: of each [m].
        most: how many at most.
    """
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
    names = scored.class_names
    seen = thumbnails_of(scored, choice.rows, pictures, looking, looked_at={*choice.worst, *choice.unsure})

    def shown(row: int) -> Shown:
        label, guess, sure = names[scored.labels[row]], names[scored.guesses[row]], float(scored.confidence[row])
        return Shown.of(scored, row, seen[row], label=label, guess=guess, confidence=sure)

    return Gallery(
        worst=[shown(row) for row in choice.worst],
        unsure=[shown(row) for row in choice.unsure],
        pairs=[
            (names[pair.label], names[pair.guess], pair.count, [shown(row) for row in rows])
            for pair, rows in choice.pairs
        ],
        note=missing_note(pictures, len(seen)),
        about_attention=looking.told,
    )


def thumbnails_of(
    scored: Scored | ScoredSets, rows: Collection[int], pictures: Pictures, looking: Looking, *, looked_at: set[int]
) -> dict[int, Thumbnails]:
    """Return each picture once, however often it is shown.

    Args:
        scored: what the model said.
        rows: of the pictures.
        pictures: of the split.
        looking: makes the overlays.
        looked_at: rows that get one.
    """
    found = {}
    for row in sorted(rows):
        image = pictures.read(int(scored.indices[row]))
        found[row] = "" if image is None else thumbnail(image, _SIDE)
        if image is not None and row in looked_at:
            looking.keep(row, image)
    looked = looking.drawn(_SIDE)
    return {row: Thumbnails(picture, looked.get(row, "")) for row, picture in found.items()}


def missing_note(pictures: Pictures, number: int) -> str:
    """Say why some or all of the chosen pictures are not there; empty where all are.

    Args:
        pictures: after they were read.
        number: that were chosen.
    """
    if not pictures.missing:
        return ""
    some = "No picture" if pictures.missing == number else f"{pictures.missing} of {number} pictures"
    verb = "can be shown" if pictures.missing == number else "cannot be shown"
    return f"{some} {verb}: {printable(pictures.reason)}."
