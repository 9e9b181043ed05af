"""Folds: whole groups, even classes, and the order of files where it matters."""

from __future__ import annotations

import numpy as np
import pytest

from vit_finetune.common.errors import RequestError
from vit_finetune.training.folds import folds_of

LABELS = np.repeat([0, 1, 2], [20, 12, 8])


@pytest.mark.parametrize("how", ["stratified", "contiguous"])
def test_folds__every_class_is_spread_evenly(how: str) -> None:
    """Each fold holds a quarter of each class, whichever way."""
    folds = folds_of(LABELS, num_folds=4, how=how, seed=0)
    for label, count in ((0, 5), (1, 3), (2, 2)):
        assert np.bincount(folds[label == LABELS]).tolist() == [count] * 4


def test_folds__contiguous_keeps_neighbours_together() -> None:
    """Contiguous folds rise along each class; stratified ones are dealt at random, the same for the same seed."""
    runs = folds_of(LABELS, num_folds=4, how="contiguous", seed=0)
    assert all((np.diff(runs[label == LABELS]) >= 0).all() for label in range(3))
    dealt = [folds_of(LABELS, num_folds=4, how="stratified", seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(dealt[0], dealt[1])
    assert (dealt[0] != dealt[2]).any()


def test_folds__a_group_is_never_split() -> None:
    """Pictures of one group share a fold, and every fold gets one."""
    groups = [f"p{index % 7}" for index in range(len(LABELS))]
    folds = folds_of(LABELS, num_folds=3, how="stratified", seed=0, groups=groups)
    assert {len({fold for fold, name in zip(folds, groups, strict=True) if name == group}) for group in groups} == {1}
    assert set(folds) == {0, 1, 2}


def test_folds__refuses_fewer_groups_than_folds() -> None:
    """Two groups cannot be held out three times; the message names them."""
    with pytest.raises(RequestError, match=r"finds 2 groups \(a, b\) for 3 folds"):
        folds_of(LABELS, num_folds=3, how="stratified", seed=0, groups=["a", "b"] * 20)
    with pytest.raises(RequestError, match="num_folds is 4 for 3 training pictures"):
        folds_of(LABELS[:3], num_folds=4, how="stratified", seed=0)
