"""Folds: every picture held out once, classes even, groups together; as balanced as sklearn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from vit_finetune.common.errors import RequestError
from vit_finetune.data import ImageSet, Splits, k_folds
from vit_finetune.data.image_set import FileStore


def data_of(labels, names=None) -> Splits:
    names = tuple(names or (f"{index}.png" for index in range(len(labels))))
    classes = tuple("abcdefgh"[: max(labels) + 1])
    train = ImageSet(FileStore(Path("photos"), names), np.array(labels, dtype=np.int64))
    return Splits(train=train, val=train, test=None, class_names=classes)


def unevenness(fold_labels, num_classes) -> float:
    """Return how far the folds' class counts are from even, as a sum of variances of shares."""
    counts = np.array([np.bincount(labels, minlength=num_classes) for labels in fold_labels])
    return float((counts / counts.sum(axis=0)).var(axis=0).sum())


def test_k_folds__every_picture_is_held_out_once():
    """The test parts are a partition, and each training part is the rest; there is nothing that selects."""
    splits = data_of([0, 1, 2] * 7)
    folds = k_folds(splits, 4)
    held = [set(fold.test.store.names) for fold in folds]
    assert sorted(name for names in held for name in names) == sorted(splits.train.store.names)
    for names, fold in zip(held, folds, strict=True):
        assert set(fold.train.store.names) == set(splits.train.store.names) - names
        assert fold.val is None
        label_of = dict(zip(splits.train.store.names, splits.train.labels, strict=True))
        assert [label_of[name] for name in fold.test.store.names] == fold.test.labels.tolist()


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_k_folds__as_even_as_sklearns(num_folds):
    """Without groups each class is spread as sklearn's StratifiedKFold spreads it: counts differ by one at most."""
    labels = np.random.default_rng(0).choice(4, size=83, p=[0.5, 0.3, 0.15, 0.05])
    ours = [fold.test.labels for fold in k_folds(data_of(labels.tolist()), num_folds)]
    theirs = [labels[test] for _, test in StratifiedKFold(num_folds).split(labels, labels)]
    for folds in (ours, theirs):
        counts = np.array([np.bincount(fold, minlength=4) for fold in folds])
        assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp([len(fold) for fold in ours]) <= 4


def test_k_folds__groups_stay_together_and_even():
    """No group is in two folds, and the classes are at most a little less even than sklearn's with the same groups."""
    generator = np.random.default_rng(1)
    people = generator.choice(23, size=200)
    labels = (people + generator.choice(3, size=200)) % 4
    names = [f"person{person}_{index}.png" for index, person in enumerate(people)]
    folds = k_folds(data_of(labels.tolist(), names), 4, groups=lambda key: key.split("_")[0])
    homes = [{name.split("_")[0] for name in fold.test.store.names} for fold in folds]
    assert sum(map(len, homes)) == len(set(people.tolist()))
    theirs = StratifiedGroupKFold(4).split(labels, labels, people)
    limit = unevenness([labels[test] for _, test in theirs], 4)
    assert unevenness([fold.test.labels for fold in folds], 4) <= 1.5 * limit
    listed = k_folds(data_of(labels.tolist(), names), 4, groups=[f"person{person}" for person in people])
    assert [fold.test.store.names for fold in listed] == [fold.test.store.names for fold in folds]


def test_k_folds__a_function_of_seed_and_keys():
    """The same folds whatever the order of the pictures; others for another seed."""
    labels, names = [0, 1] * 10, [f"{index}.png" for index in range(20)]
    folds = k_folds(data_of(labels, names), 3)
    turned = k_folds(data_of(labels[::-1], names[::-1]), 3)
    other = k_folds(data_of(labels, names), 3, seed=1)
    held = [[set(fold.test.store.names) for fold in some] for some in (folds, turned, other)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 0, 1], {"num_folds": 1}, "num_folds is 1; give at least 2"),
        ([0, 1, 0, 1], {"num_folds": 5}, "4 pictures cannot fill 5 folds"),
        ([0, 0, 0, 1], {"num_folds": 2}, "classes within a single picture cannot be trained on.*: b"),
        ([0, 1, 0, 1], {"num_folds": 2, "groups": [0, 1, 0, 1]}, "classes within a single group.*: a, b"),
        ([0, 1, 0, 1], {"num_folds": 3, "groups": [0, 0, 1, 1]}, "2 groups cannot fill 3 folds"),
        ([0, 1, 0, 1], {"num_folds": 2, "groups": [0]}, "1 groups for 4 pictures"),
    ],
)
def test_k_folds__refuses(labels, options, message):
    """Folds that cannot be are refused with the reason."""
    with pytest.raises(RequestError, match=message):
        k_folds(data_of(labels), **options)
