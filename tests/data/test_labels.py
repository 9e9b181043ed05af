"""Classes as names and numbers, and holding out a share of sets of classes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vit_finetune.data.labels import classes_in, encode_labels, renumber, strata, whole_classes

sets_of_classes = st.lists(st.lists(st.sampled_from("abcde"), unique=True).map(tuple), min_size=1, max_size=30)


def test_encode_labels__written_out() -> None:
    """One class is an index, a set of classes a row of zeros and ones; a picture may have none."""
    assert encode_labels(["b", "a"], ("a", "b")).tolist() == [1, 0]
    rows = encode_labels([("b", "c"), (), ("a",)], ("a", "b", "c"))
    assert rows.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert rows.dtype == np.uint8


def test_renumber__written_out() -> None:
    """Indices and rows go to the places that their classes have in another map, which may know more."""
    places = np.array([2, 0])
    assert renumber(np.array([0, 1, 1]), places, 4).tolist() == [2, 0, 0]
    assert renumber(np.array([[1, 0], [1, 1]], dtype=np.uint8), places, 4).tolist() == [[0, 0, 1, 0], [1, 0, 1, 0]]


def test_strata__a_picture_goes_with_its_rarest_class() -> None:
    """Every picture is in one group: of its rarest class, of equally rare ones the first by name, or of none."""
    labels = [("a", "b"), ("a",), (), ("a", "c"), ("c", "b")]
    assert strata(labels) == {"b": [0, 4], "a": [1], "": [2], "c": [3]}
    assert strata(["x", "y", "x"]) == {"x": [0, 2], "y": [1]}


@given(labels=sets_of_classes, chosen=st.data())
def test_whole_classes__leaves_every_class_a_picture(labels: list[tuple[str, ...]], chosen: st.DataObject) -> None:
    """With those pictures given back, every class is among the rest, and none is given back without need."""
    mask = np.array(chosen.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    back = whole_classes(labels, mask)
    assert all(mask[back])
    missing = classes_in(labels) - classes_in([label for label, out in zip(labels, mask, strict=True) if not out])
    assert len(back) <= len(missing)
    mask[back] = False
    assert classes_in([label for label, out in zip(labels, mask, strict=True) if not out]) == classes_in(labels)
