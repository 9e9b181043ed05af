"""Class names and counts: what is told, and what is left in peace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vit_finetune.data.audit.classes import check_classes, check_folder_names, similar_names
from vit_finetune.data.image_set import FileStore, ImageSet, Splits


def splits_of(train: list[str], labels: list[int], class_names: tuple[str, ...]) -> Splits:
    """Return a train split of names that nobody opens."""
    pictures = ImageSet(FileStore(Path("x"), tuple(train)), np.array(labels, dtype=np.int64))
    return Splits(train=pictures, val=None, test=None, class_names=class_names)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("cat", "Cat"), ("black_grouse", "black grouse"), ("golden retriever", "golden retreiver")),
        *(("sunflower", "sunflowers"), ("daisy", "daisy "), ("collie dog", "coolie dog"), ("x/small", "x-small")),
    ],
)
def test_similar_names__slips(first: str, second: str) -> None:
    """Case, signs, plurals, a wrong letter and swapped letters."""
    assert similar_names([first, "other", second]) == [tuple(sorted((first, second)))]


@pytest.mark.parametrize(
    "names",
    [
        ["class_a", "class_b", "class_1", "class_12", "n01440764", "n01440765"],
        ["cat", "cats eye", "bat", "male", "female", "left lung", "right lung", "x/small", "y/small"],
        ["benign", "malignant", "grade 1", "grade 2", "0", "1", "10", "", "\u72ac", "\u732b"],
    ],
)
def test_similar_names__different_classes(names: list[str]) -> None:
    """Numbers, short words and words that differ in more than a letter are different classes."""
    assert similar_names(names) == []


def test_similar_names__many_classes() -> None:
    """20,000 classes are compared through a table, in seconds."""
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (20_000, 14))
    names = ["".join(row) for row in letters]
    assert similar_names([*names, names[5].upper()]) == [(names[5].upper(), names[5])]


def test_check_classes__counts() -> None:
    """Ten to one is even enough; eleven to one is told, with both ends."""
    even = splits_of([str(index) for index in range(22)], [0] * 20 + [1] * 2, ("a", "b"))
    assert check_classes(even) == []
    (finding,) = check_classes(splits_of([str(index) for index in range(24)], [0] * 22 + [1] * 2, ("a", "b")))
    assert (finding.code, [example.name for example in finding.examples]) == ("imbalance", ["a", "b"])


def test_check_classes__several_classes_a_picture() -> None:
    """Multi-label pictures count under each of their classes."""
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=np.uint8)
    pictures = ImageSet(FileStore(Path("x"), ("a", "b", "c")), labels)
    val = ImageSet(FileStore(Path("x"), ("d",)), np.array([[1, 0, 1]], dtype=np.uint8))
    found = check_classes(Splits(train=pictures, val=val, test=None, class_names=("p", "q", "r")))
    assert [(finding.code, finding.examples[0].name) for finding in found] == [
        ("class_not_in_val", "q"),
        ("class_not_in_train", "r"),
    ]


def test_check_folder_names__disagreement() -> None:
    """A path that names another class than the label is told; one that names its own, or none, is not."""
    names = ["cat/1.jpg", "set1/Dog/2.jpg", "dog/cat/3.jpg", "img/dog.jpg", "birds/5.jpg"]
    (finding,) = check_folder_names(splits_of(names, [0, 0, 0, 0, 1], ("cat", "dog")))
    assert finding.code == "label_disagrees"
    assert [(example.name, example.note) for example in finding.examples] == [
        ("x/set1/Dog/2.jpg", "labelled cat, in a folder dog")
    ]
