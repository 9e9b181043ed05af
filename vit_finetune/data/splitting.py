"""How a share of a source's pictures is held out: a share of every class, at random, whole groups, or the latest.

What is held out is a function of (seed, picture name, class, group, time) and of nothing else, so the same pictures
are split alike wherever they lie and in whatever order they are listed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.folds import deal_counts
from vit_finetune.common.seeding import derive_seed
from vit_finetune.common.suggest import listed
from vit_finetune.data.duplicates import keep_copies_together
from vit_finetune.data.image_set import ImageStore
from vit_finetune.data.labels import Label, classes_in, encode_labels, is_multilabel, strata, whole_classes
from vit_finetune.data.parts import Part, Parts

SplitBy = Literal["stratified", "random", "group", "time"]
_WHAT = {"val": "validation", "test": "the test split"}


@dataclass(frozen=True)
class SplitRule:
    """How pictures are held out where a source has no such split.

    Attributes:
        by: "stratified": the same share of each class; "random": of all pictures; "group": whole groups, classes as
            even as they allow; "time": the latest.
        val_fraction: share of the pictures for validation, in [0, 1).
        test_fraction: share of the pictures for the test split, in [0, 1).
        group_pattern: with "group": a regular expression that finds the group in a picture's name.
        seed: decides, with each picture's name, what is held out.
        keep_copies: pictures that are equal, or nearly so, are held out together or not at all.

    Raises:
        RequestError: the shares leave nothing to train on, or the expression is none.
    """

    by: SplitBy = "stratified"
    val_fraction: float = 0.2
    test_fraction: float = 0.0
    group_pattern: str | None = None
    seed: int = 0
    keep_copies: bool = False

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing, and what is no regular expression."""
        for name, value in (("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)):
            if not 0 <= value < 1:
                raise RequestError(f"{name} is {value}; it must be at least 0 and below 1")
        if self.val_fraction + self.test_fraction >= 1:
            raise RequestError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave nothing to train on"
            )
        try:
            re.compile(self.group_pattern or "")
        except re.error as error:
            raise RequestError(f"group_pattern {self.group_pattern!r} is no regular expression: {error}") from error


def split(parts: Parts, rule: SplitRule, *, with_val: bool, place: str | Path | None = None) -> Parts:
    """Hold out what a source does not have: the test split if one is asked for, then val.

    Args:
        parts: the source.
        rule: how.
        with_val: whether a val split is wanted.
        place: the folder or the list that the files were found by; see `keep_copies_together`.

    Raises:
        RequestError: the pictures lack what the rule goes by, a group is in two given splits, or nothing can be held
            out.
    """
    if rule.by == "group":
        parts = _with_groups(parts, rule.group_pattern)
        _check_groups(parts)
    if parts.is_settled:
        return parts
    if rule.keep_copies:
        parts = keep_copies_together(parts, place)
    fraction = rule.val_fraction
    if parts.test is None and rule.test_fraction > 0:
        parts = hold_out(parts, rule.test_fraction, rule.seed, by=rule.by, into="test")
        fraction /= 1 - rule.test_fraction
    if parts.val is None and with_val and fraction > 0:
        parts = hold_out(parts, fraction, rule.seed, by=rule.by)
    return parts


def hold_out(
    parts: Parts, fraction: float, seed: int, *, by: SplitBy = "stratified", into: Literal["val", "test"] = "val"
) -> Parts:
    """Move a share of the training pictures to another split.

    Every class keeps a training picture, except by time, where a class that begins late is refused later on.

    Args:
        parts: the source; `train` shrinks.
        fraction: the share, in (0, 1).
        seed: decides what is held out, with the pictures' names, or with those of the groups.
        by: as in `SplitRule`.
        into: which split is made.

    Raises:
        RequestError: nothing can be held out, or groups or times are not known.
    """
    choose: dict[SplitBy, Callable[[Part, float, int, str], tuple[NDArray[np.bool_], list[str]]]] = {
        "stratified": _stratified,
        "random": _random,
        "group": _grouped,
        "time": _latest,
    }
    chosen, notes = choose[by](parts.train, fraction, seed, into)
    if not chosen.any():
        raise RequestError(
            "every class has a single picture, so none can be held out; add pictures or set val_split: null"
        )
    train, held = parts.train.take(np.flatnonzero(~chosen)), parts.train.take(np.flatnonzero(chosen))
    lacking = sorted(classes_in(train.classes) - classes_in(held.classes))
    if lacking and by != "stratified":
        notes.append(f"classes that {_WHAT[into]} lacks: {listed(lacking)}")
    halves = replace(parts, train=train, notes=(*parts.notes, *notes))
    return replace(halves, val=held) if into == "val" else replace(halves, test=held)


_Chosen = tuple[NDArray[np.bool_], list[str]]


def _ranked(part: Part, indices: Sequence[int], seed: int, into: str) -> list[int]:
    """Return pictures in an order that their names and the seed decide."""
    return sorted(indices, key=lambda index: derive_seed(seed, into, part.store.key(index)))


def _counted(chosen: NDArray[np.bool_]) -> str:
    return f"{chosen.sum():,} of {len(chosen):,} pictures"


def _stratified(part: Part, fraction: float, seed: int, into: str) -> _Chosen:
    """Choose a share of every class; a class of two or more gives one at least and keeps one."""
    if part.groups is not None:  # copies that stay together; no other groups are known here
        chosen, _ = _grouped(part, fraction, seed, into)
        return chosen, [
            f"held out {fraction:.0%} of each class, as near as copies allow, for {_WHAT[into]}: {_counted(chosen)}"
        ]
    members = strata(part.classes)
    chosen = np.zeros(len(part.store), dtype=bool)
    for indices in members.values():
        count = min(max(int(fraction * len(indices) + 0.5), 1), len(indices) - 1)
        chosen[_ranked(part, indices, seed, into)[:count]] = True
    chosen[whole_classes(part.classes, chosen)] = False
    notes = [f"held out {fraction:.0%} of each class for {_WHAT[into]}: {_counted(chosen)}"]
    single = [label for label, indices in members.items() if len(indices) == 1]
    if single and not is_multilabel(part.classes):
        verb = "validated" if into == "val" else "tested"
        notes.append(f"classes with a single picture are not {verb}: {listed(single)}")
    return chosen, notes


def _random(part: Part, fraction: float, seed: int, into: str) -> _Chosen:
    """Choose a share of all pictures, copies together."""
    chosen = np.zeros(len(part.store), dtype=bool)
    count = max(int(fraction * len(chosen) + 0.5), 1)
    if part.groups is None:
        chosen[_ranked(part, range(len(chosen)), seed, into)[:count]] = True
        chosen[whole_classes(part.classes, chosen)] = False
    else:
        names, members, sizes = np.unique(np.asarray(part.groups), return_inverse=True, return_counts=True)
        order = sorted(range(len(names)), key=lambda number: derive_seed(seed, into, str(names[number])))
        taken = np.array(order)[: int(np.searchsorted(sizes[order].cumsum(), count)) + 1]
        chosen = np.isin(members, taken)
        chosen &= ~np.isin(members, members[whole_classes(part.classes, chosen)])
    return chosen, [f"held out {fraction:.0%} of the pictures for {_WHAT[into]}: {_counted(chosen)}"]


def _grouped(part: Part, fraction: float, seed: int, into: str) -> _Chosen:
    """Choose whole groups, so that the share of every class is as near to the one asked for as they allow."""
    if part.groups is None:
        raise RequestError(
            "data.split_by group needs to know the groups; name their column (data.group_column), or for pictures in "
            "folders an expression that finds the group in a picture's name (data.group_pattern)"
        )
    names, members = np.unique(np.asarray(part.groups), return_inverse=True)
    if len(names) < 2:
        raise RequestError(f"all pictures are of one group, {str(names[0])!r}, so none can be held out")
    counts = _class_counts(part.classes, members, len(names))
    # Large groups first, or the last ones cannot be evened out; of about the same size, in the order of the draw.
    order = sorted(
        range(len(names)),
        key=lambda number: (-math.frexp(counts[number].sum())[1], derive_seed(seed, into, str(names[number]))),
    )
    part_of = deal_counts(counts, np.array([1 - fraction, fraction]), order)
    if not part_of.any():  # every group is larger than the share: the first small one is nearest to it
        part_of[order[-1]] = 1
    chosen = part_of[members].astype(bool)
    back = members[whole_classes(part.classes, chosen)]
    part_of[back] = 0
    chosen = part_of[members].astype(bool)
    if not chosen.any():
        raise RequestError("every group holds all pictures of some class, so none can be held out")
    held = f"{part_of.sum():,} of {len(names):,} groups for {_WHAT[into]}"
    return chosen, [f"held out {held}: {_counted(chosen)} ({chosen.mean():.0%})"]


def _class_counts(classes: Sequence[Label], members: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
    """Return how many pictures of each class a group has, [G, K + 1]; the last counts those without a class."""
    class_names = sorted(classes_in(classes))
    labels = encode_labels(classes, class_names)
    counts = np.zeros((num_groups, len(class_names) + 1))
    if labels.ndim == 1:
        np.add.at(counts, (members, labels), 1)
    else:
        np.add.at(counts[:, :-1], members, labels)
        np.add.at(counts[:, -1], members, labels.sum(axis=1) == 0)
    return counts


def _latest(part: Part, fraction: float, seed: int, into: str) -> _Chosen:  # noqa: ARG001 - nothing is drawn
    """Choose the latest pictures; those of one moment stay together."""
    if part.times is None:
        raise RequestError("data.split_by time needs to know the times; name their column (data.time_column)")
    moments, counts = np.unique(part.times, return_counts=True)
    if len(moments) < 2:
        raise RequestError("all pictures are of one moment, so no later ones can be held out")
    later = counts[::-1].cumsum()[::-1][1:]  # pictures from the second moment on, from the third, ...
    first = int(np.argmin(np.abs(later - fraction * counts.sum()))) + 1
    chosen = part.times >= moments[first]
    return chosen, [f"held out the latest {chosen.mean():.0%} for {_WHAT[into]}: {_counted(chosen)}"]


def _with_groups(parts: Parts, pattern: str | None) -> Parts:
    """Find the groups of pictures in their names, where an expression says how."""
    if pattern is None:
        return parts

    def grouped(part: Part) -> Part:
        return replace(part, groups=groups_in(part.store, pattern, "data.group_pattern"))

    return replace(
        parts,
        train=grouped(parts.train),
        val=grouped(parts.val) if parts.val else None,
        test=grouped(parts.test) if parts.test else None,
    )


def groups_in(store: ImageStore, expression: str, option: str) -> list[str]:
    """Return the group that each picture's name tells.

    Args:
        store: the pictures.
        expression: a regular expression; its first group, or else all that it matches, is the picture's group.
        option: where the expression comes from, for the error.

    Raises:
        RequestError: a name in which the expression finds nothing.
    """
    keys = [store.key(index) for index in range(len(store))]
    found = [re.search(expression, key) for key in keys]
    if missing := [key for key, match in zip(keys, found, strict=True) if match is None]:
        raise RequestError(
            f"{option} {expression!r} finds nothing in {len(missing)} paths, such as {missing[0]}; it must match "
            "every picture"
        )
    return [match.group(1 if match.re.groups else 0) or "" for match in found if match is not None]


def _check_groups(parts: Parts) -> None:
    """Refuse splits that were given and part a group."""
    seen: dict[str, str] = {}
    for name, part in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
        for group in sorted(set(part.groups or ())) if part else ():
            if group in seen:
                raise RequestError(
                    f"group {group!r} is in {seen[group]} and in {name}; move its pictures into one of them, or let "
                    "the pictures be split anew by leaving the splits out"
                )
            seen[group] = name
