"""What is wrong with the classes of a data set: names and counts, no pixels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import PurePosixPath

from vit_finetune.data.audit.findings import Example, Finding, found, printable
from vit_finetune.data.image_set import ImageSet, Splits

MAX_RATIO = 10  # largest over smallest class that is still even enough to go without a word
_LEAST_LETTERS = 5  # of a word in which one wrong letter is a slip, not another word
_WORDS = re.compile(r"[^\W_]+")


def check_classes(splits: Splits) -> list[Finding]:
    """Return what is wrong with the class map over all splits.

    Args:
        splits: with one class map.
    """
    names, count = [printable(name) for name in splits.class_names], len(splits.class_names)
    train = splits.train.class_counts(count)
    trained = [index for index in range(count) if train[index]]
    findings = found("one_class", [Example(names[index]) for index in trained] if len(trained) < 2 else [])
    elsewhere: dict[int, list[str]] = defaultdict(list)
    for split, pictures in splits.named()[1:]:
        there = pictures.class_counts(count)
        for index in range(count):
            if there[index] and not train[index]:
                elsewhere[index].append(f"{there[index]:,} in {split}")
        missing = [Example(names[index], f"{train[index]:,} in train") for index in trained if not there[index]]
        findings += found(f"class_not_in_{split}", missing)
    findings += found("class_not_in_train", [Example(names[index], ", ".join(elsewhere[index])) for index in elsewhere])
    findings += found("one_picture_class", [Example(names[index]) for index in trained if train[index] == 1])
    findings += found("similar_names", [Example(f"{a} / {b}") for a, b in similar_names(splits.class_names)])
    if len(trained) > 1:
        largest, least = max(trained, key=lambda index: train[index]), min(trained, key=lambda index: train[index])
        if train[largest] > MAX_RATIO * train[least]:
            ends = [Example(names[index], f"{train[index]:,} in train") for index in (largest, least)]
            what = f"the largest class has {train[largest] / train[least]:,.0f} times the pictures of the smallest"
            findings += found("imbalance", ends, what=what)
    return findings


def similar_names(class_names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of classes that are probably one: alike but for case, signs, a plural or one slip of a letter.

    Words without one of their letters are looked up in a table, so the time grows with the classes, not their pairs.

    Args:
        class_names: of all classes.
    """
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in class_names:
        for key in _keys(name):
            places[key].append(name)
    pairs = {tuple(sorted(pair)) for names in places.values() for pair in combinations(dict.fromkeys(names), 2)}
    return [(a, b) for a, b in sorted(pairs) if _is_slip(a, b)]


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORDS.findall(name))


def _keys(name: str) -> Iterator[tuple[str, ...]]:
    """Yield what two similar names have in common: the letters alone, or the words with one letter left out."""
    words = _words(name)
    yield ("", "".join(words))
    for place, word in enumerate(words):
        if len(word) >= _LEAST_LETTERS - 1:
            for letter in (None, *range(len(word))):
                shorter = word if letter is None else word[:letter] + word[letter + 1 :]
                yield (*words[:place], shorter, *words[place + 1 :])


def _is_slip(first: str, second: str) -> bool:
    """Tell whether two names are one but for signs and case, or for one letter of a long word that is no number."""
    a, b = _words(first), _words(second)
    if "".join(a) == "".join(b):
        return True
    differing = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    if len(a) != len(b) or len(differing) != 1:
        return False
    x, y = sorted(differing[0], key=len)
    if any(letter.isdigit() for letter in x + y) or len(y) < _LEAST_LETTERS:
        return False
    if len(x) < len(y):
        return any(y[:place] + y[place + 1 :] == x for place in range(len(y)))
    wrong = [place for place in range(len(x)) if x[place] != y[place]]
    # One letter instead of another, or two neighbours swapped; the first and the last more often tell names apart.
    swapped = len(wrong) == 2 and wrong[1] == wrong[0] + 1 and x[wrong[0]] == y[wrong[1]] and x[wrong[1]] == y[wrong[0]]
    return swapped or (len(wrong) == 1 and 0 < wrong[0] < len(x) - 1)


def check_folder_names(splits: Splits) -> list[Finding]:
    """Return pictures of a table whose path names another class of the data than their label.

    Args:
        splits: of a table; in a folder of pictures both are one.
    """
    known = {name.casefold(): name for name in splits.class_names}
    cases = []
    for split, pictures in splits.named():
        if pictures.is_multilabel:
            continue
        for index in range(len(pictures)):
            label = splits.class_names[int(pictures.labels[index])]
            named = _class_in_path(pictures, index, known)
            if named is not None and named != label:
                note = f"labelled {printable(label)}, in a folder {printable(named)}"
                cases.append(Example(printable(pictures.name(index)), note, ((split, index),)))
    return found("label_disagrees", cases)


def _class_in_path(pictures: ImageSet, index: int, known: dict[str, str]) -> str | None:
    """Return the class that the last folder of a picture's path with a class's name names, if any does."""
    folders = PurePosixPath(pictures.store.key(index)).parts[:-1]
    return next((known[part.casefold()] for part in reversed(folders) if part.casefold() in known), None)
