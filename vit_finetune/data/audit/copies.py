"""The same picture twice: equal files by their hash, nearly equal pictures by a perceptual hash and a thumbnail.

The perceptual hash is 63 bits: the signs of the lowest frequencies of a 16 x 16 grey thumbnail against their median.
Two hashes that differ in at most 6 bits agree in one of 7 bands of 9, so only pictures that share a band are compared;
those that also correlate by 0.98 over the thumbnail are nearly equal. That finds copies that were saved anew, scaled or
made brighter, not crops. On 125 photographs and 1,100 hand signs it finds no pair that isn't one.

Source: pHash (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions), with bands in the
place of its tree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vit_finetune.data.audit.facts import THUMB, PictureFacts
from vit_finetune.data.audit.files import Facts
from vit_finetune.data.audit.findings import Example, Finding, found, printable
from vit_finetune.data.image_set import Splits

MAX_BITS = 6
LEAST_CORRELATION = 0.98
_BANDS = MAX_BITS + 1
_BITS = 63 // _BANDS
_FREQUENCIES = 8
_BLOCK = 2048  # hashes that are compared at once with as many others
_FLAT = 64.0  # of a thumbnail: the length of its grey values around their mean, below which it shows nothing (4 levels)

Place = tuple[str, int]


def check_copies(splits: Splits, facts: Facts) -> list[Finding]:
    """Return pictures that are there several times: within a split, across splits, or under different labels.

    Args:
        splits: the data set.
        facts: of each split; near-duplicates are looked for where they have thumbnails.
    """
    places = [(split, index) for split, _ in splits.named() for index in range(len(facts[split]))]
    same, near = _same_and_near([facts[split][index] for split, index in places])
    findings = _told(splits, ([places[number] for number in group] for group in same), "duplicate")
    return findings + _told(splits, ([places[number] for number in group] for group in near), "near_duplicate")


def copies(facts: Sequence[PictureFacts]) -> list[list[int]]:
    """Return the groups of pictures that are equal or nearly so, each ascending.

    Args:
        facts: of pictures that were decoded; one that could not be read is a copy of nothing.
    """
    same, near = _same_and_near(facts)
    pairs = [(group[0], other) for group in (*same, *near) for other in group[1:]]
    return joined(np.array(pairs, dtype=np.int64).reshape(-1, 2), len(facts))


def _same_and_near(facts: Sequence[PictureFacts]) -> tuple[list[list[int]], list[list[int]]]:
    """Return groups of equal files and groups of nearly equal pictures."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, fact in enumerate(facts):
        if fact.sha256 and fact.num_bytes:
            groups[fact.sha256].append(number)
    # One of each set of equal files stands for them, so that a pair is not told twice.
    numbers = [group[0] for group in groups.values() if facts[group[0]].thumb]
    pairs = near_pairs(_thumbs([facts[number].thumb for number in numbers]))
    near = [[numbers[member] for member in group] for group in joined(pairs, len(numbers))]
    return [group for group in groups.values() if len(group) > 1], near


def _told(splits: Splits, groups: Iterable[Sequence[Place]], code: str) -> list[Finding]:
    """Return the findings of groups of copies, each group under the worst that is to be said of it."""
    sets = dict(splits.named())
    cases: dict[str, list[Example]] = {f"{code}_conflict": [], f"{code}_across_splits": [], code: []}
    for group in groups:
        labels = {sets[split].labels[index].tobytes() for split, index in group}
        across = len({split for split, _ in group}) > 1
        kind = f"{code}_conflict" if len(labels) > 1 else f"{code}_across_splits" if across else code
        names = [printable(sets[split].name(index)) for split, index in group]
        told = [f"{name} ({_label(splits, place)})" for name, place in zip(names, group, strict=True)]
        cases[kind].append(Example(told[0], "; ".join(told[1:]), tuple(group)))
    return [finding for kind, examples in cases.items() for finding in found(kind, examples)]


def _label(splits: Splits, place: Place) -> str:
    """Return split and classes of a picture."""
    split, index = place
    pictures = dict(splits.named())[split]
    label = pictures.labels[index]
    names = [splits.class_names[each] for each in (np.flatnonzero(label) if pictures.is_multilabel else [int(label)])]
    return f"{split}, {', '.join(map(printable, names)) or 'no class'}"


def _thumbs(thumbs: Iterable[bytes | None]) -> NDArray[np.uint8]:
    data = b"".join(thumb or b"" for thumb in thumbs)
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, THUMB, THUMB)


def perceptual_hashes(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hash of thumbnails.

    Args:
        thumbs: grey values [N, 16, 16].

    Returns:
        63 bits each, [N].
    """
    steps = np.arange(THUMB) + 0.5
    waves = np.cos(np.pi * steps[None] * np.arange(_FREQUENCIES)[:, None] / THUMB)
    hashes = np.empty(len(thumbs), dtype=np.uint64)
    for start in range(0, len(thumbs), _BLOCK):
        part = thumbs[start : start + _BLOCK].astype(np.float64)
        spectrum = (waves @ part @ waves.T).reshape(len(part), -1)[:, 1:]
        bits = spectrum > np.median(spectrum, axis=1, keepdims=True)
        hashes[start : start + _BLOCK] = bits @ (np.uint64(1) << np.arange(63, dtype=np.uint64))
    return hashes


def near_pairs(thumbs: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return pairs of pictures that are nearly equal; pictures without contrast are in none.

    Memory grows with the pictures and the pairs that are found, never with all pairs.

    Args:
        thumbs: grey values [N, 16, 16].

    Returns:
        Places [P, 2], the lower first; of several with one hash each is paired with the first of them.
    """
    unit = thumbs.reshape(len(thumbs), THUMB * THUMB).astype(np.float32)
    unit -= unit.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("nf,nf->n", unit, unit))
    unit /= np.maximum(length, 1e-6)[:, None]
    shown = np.flatnonzero(length >= _FLAT)
    if len(shown) < 2:
        return np.empty((0, 2), dtype=np.int64)
    hashes, first, member = np.unique(perceptual_hashes(thumbs[shown]), return_index=True, return_inverse=True)
    own = np.stack([first[member], np.arange(len(shown))], axis=1)
    pairs = np.concatenate([own[own[:, 0] != own[:, 1]], *(first[block] for block in _close(hashes))])
    pairs = np.unique(np.sort(shown[pairs], axis=1), axis=0)
    alike = [
        np.einsum("nf,nf->n", unit[block[:, 0]], unit[block[:, 1]])
        for block in np.array_split(pairs, max(1, len(pairs) // 65536))
    ]
    return np.asarray(pairs[np.concatenate(alike) >= LEAST_CORRELATION], dtype=np.int64)


def _close(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield pairs [P, 2] of different hashes that differ in few bits, those that share a band together."""
    for band in range(_BANDS):
        values = (hashes >> np.uint64(band * _BITS)) & np.uint64((1 << _BITS) - 1)
        order = np.argsort(values, kind="stable")
        edges = np.flatnonzero(np.diff(values[order])) + 1
        for bucket in np.split(order, edges):
            yield from _close_in(hashes, bucket)


def _close_in(hashes: NDArray[np.uint64], bucket: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the close pairs among the hashes of a bucket, block by block."""
    for start in range(0, len(bucket), _BLOCK):
        rows = bucket[start : start + _BLOCK]
        for other in range(start, len(bucket), _BLOCK):
            columns = bucket[other : other + _BLOCK]
            differing = np.bitwise_count(hashes[rows][:, None] ^ hashes[columns][None])
            a, b = np.nonzero(differing <= MAX_BITS)
            pairs = np.stack([rows[a], columns[b]], axis=1)
            yield pairs[pairs[:, 0] < pairs[:, 1]] if other == start else pairs


def joined(pairs: NDArray[np.int64], count: int) -> list[list[int]]:
    """Return the groups that pairs join, each ascending, in the order of their first.

    Args:
        pairs: [P, 2] of numbers below `count`.
        count: how many there are; those in no pair are in no group.
    """
    parent = list(range(count))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b in pairs.tolist():
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for place in np.unique(pairs).tolist():
        groups[root(place)].append(place)
    return list(groups.values())
