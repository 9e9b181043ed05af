"""Copies of a picture stay together when pictures are held out: they become groups of the split.

What counts as a copy is what the check tells (audit/copies.py): equal files, and pictures that are nearly equal. Where
the data has groups of its own, groups that share a copy are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from vit_finetune.common.errors import RequestError
from vit_finetune.data.audit.copies import copies, joined
from vit_finetune.data.audit.facts import Pace, PictureFacts, read_facts
from vit_finetune.data.audit.memo import Memo, facts_file
from vit_finetune.data.image_set import BlockStore, ImageSet, ImageStore
from vit_finetune.data.parts import Part, Parts


def keep_copies_together(parts: Parts, place: str | Path | None) -> Parts:
    """Group the training pictures so that copies of each other are in one group.

    Every training picture is decoded, unless a check or an earlier run knows its file already.

    Args:
        parts: a source, read.
        place: the folder or the list that its files were found by, to know them again; None knows none.

    Returns:
        The same pictures, each with a group: that of the data, or its own name, joined where pictures are copies.

    Raises:
        RequestError: the pictures are streamed.
    """
    store = parts.train.store
    if isinstance(store, BlockStore):
        raise RequestError(
            "data.keep_duplicates_together looks at every picture, and streamed ones are not fetched for that; set it "
            "false, or data.streaming false"
        )
    # In the order of the names, so that nothing depends on the order in which pictures are listed.
    order = np.array(sorted(range(len(store)), key=store.key), dtype=np.int64)
    sets = [order[group].tolist() for group in copies(_facts(store.take(order), place))]
    number = sum(map(len, sets))
    told = f"{number:,} of {len(store):,} training pictures have copies: {len(sets):,} sets, each kept in one split"
    train = replace(parts.train, groups=_joined_groups(parts.train, sets))
    return replace(parts, train=train, notes=(*parts.notes, told))


def _facts(store: ImageStore, place: str | Path | None) -> list[PictureFacts]:
    """Look at every picture; of several processes of a machine one does, where files can be known again."""
    pictures = ImageSet(store, np.full(len(store), -1, dtype=np.int64))
    if place is None:
        return read_facts(pictures, pixels=True, memo=Memo(None), pace=Pace())
    path = facts_file(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        return read_facts(pictures, pixels=True, memo=Memo(path), pace=Pace())


def _joined_groups(part: Part, sets: Sequence[Sequence[int]]) -> list[str]:
    """Return the group of each picture, the first name of all that are joined."""
    names = [part.store.key(index) for index in range(len(part.store))] if part.groups is None else list(part.groups)
    known = sorted(set(names))
    numbers = {name: number for number, name in enumerate(known)}
    pairs = [(numbers[names[each[0]]], numbers[names[other]]) for each in sets for other in each[1:]]
    called = {name: name for name in known}
    for group in joined(np.array(pairs, dtype=np.int64).reshape(-1, 2), len(known)):
        called |= {known[number]: known[group[0]] for number in group}
    return [called[name] for name in names]
