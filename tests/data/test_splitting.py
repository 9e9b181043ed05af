"""What is held out: by class, at random, by group, by time; always the same for the same names and seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_finetune.common.errors import RequestError
from vit_finetune.data.image_set import FileStore
from vit_finetune.data.parts import Part, Parts
from vit_finetune.data.splitting import SplitRule, split


def parts_of(classes, *, groups=None, times=None, names=None) -> Parts:
    """Return a source whose pictures are all in train."""
    names = tuple(names or (f"{index}.png" for index in range(len(classes))))
    times = None if times is None else np.array(times, dtype=np.float64)
    return Parts(Part(FileStore(Path("root"), names), classes, groups, times), None, None, ())


def names_of(part: Part | None) -> set[str]:
    assert part is not None
    return {part.store.key(index) for index in range(len(part.store))}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=12, max_size=80),
    st.floats(0.05, 0.6),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_split__groups_stay_together(pictures: list[tuple[int, int]], fraction: float, seed: int) -> None:
    """Whole groups are held out, and every class keeps a training picture; or one line says why not."""
    classes = ["abcd"[label] for label, _ in pictures]
    groups = [f"person {group}" for _, group in pictures]
    rule = SplitRule("group", val_fraction=fraction, seed=seed)
    try:
        done = split(parts_of(classes, groups=groups), rule, with_val=True)
    except RequestError as error:
        assert "can be held out" in str(error)
        return
    assert done.val is not None
    assert names_of(done.train) | names_of(done.val) == {f"{index}.png" for index in range(len(classes))}
    assert not set(done.train.groups or ()) & set(done.val.groups or ())
    assert set(done.train.classes) == set(classes)


@pytest.mark.parametrize("seed", range(5))
def test_split__groups_come_near_the_share_of_every_class(seed: int) -> None:
    """Of 200 people with 1 to 20 pictures each a fifth of every class is held out, within a hundredth; nearer than
    sklearn's GroupShuffleSplit, which draws groups without a look at classes."""
    from sklearn.model_selection import GroupShuffleSplit

    generator = np.random.default_rng(seed)
    people = np.repeat(np.arange(200), generator.integers(1, 21, 200))
    labels = (people + (generator.random(len(people)) < 0.3)) % 4
    classes = ["abcd"[label] for label in labels]
    done = split(parts_of(classes, groups=list(map(str, people))), SplitRule("group", seed=seed), with_val=True)
    assert done.val is not None
    totals = np.bincount(labels, minlength=4)

    def off(held: np.ndarray) -> float:
        return float(np.abs(np.bincount(held, minlength=4) / totals - 0.2).max())

    ours = off(np.array(["abcd".index(str(name)) for name in done.val.classes]))
    _, theirs = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(labels, labels, people))
    assert ours <= 0.01
    assert ours <= off(labels[theirs])


@pytest.mark.parametrize("by", ["stratified", "random", "group", "time"])
def test_split__a_function_of_names_and_seed(by: str) -> None:
    """The order in which pictures are listed does not matter; another seed holds out others, except by time."""
    count = 60
    classes = ["ab"[index % 2] for index in range(count)]
    groups = [f"g{index // 3}" for index in range(count)]
    names = [f"{index}.png" for index in range(count)]
    turned = np.random.default_rng(0).permutation(count).tolist()

    def held(order: list[int], seed: int) -> set[str]:
        picked = parts_of(
            [classes[i] for i in order],
            groups=[groups[i] for i in order],
            times=order,
            names=[names[i] for i in order],
        )
        return names_of(split(picked, SplitRule(by, seed=seed), with_val=True).val)  # type: ignore[arg-type]

    assert held(turned, 0) == held(list(range(count)), 0)
    assert (held(turned, 1) == held(turned, 0)) == (by == "time")
    assert len(held(turned, 0)) == 12


def test_split__time_takes_the_latest_and_moments_whole() -> None:
    """Test is the latest, val is just before it, and pictures of one moment are never parted."""
    times = [0, 1, 2, 3, 4, 4, 4, 5, 6, 7]
    rule = SplitRule("time", val_fraction=0.3, test_fraction=0.2)
    done = split(parts_of(list("ababababab"), times=times), rule, with_val=True)
    assert done.test is not None and done.val is not None
    assert done.test.times is not None and done.val.times is not None
    assert done.test.times.tolist() == [6, 7]
    assert done.val.times.tolist() == [4, 4, 4, 5]  # 4 is as near to 3 of 10 as leaving 3 whole moments allows
    assert done.notes[-1] == "held out the latest 50% for validation: 4 of 8 pictures"


def test_split__random_is_of_all_pictures_and_keeps_every_class() -> None:
    """As many as the share says, whatever their class; the only picture of a class goes on training."""
    classes = ["a"] * 90 + ["b"] * 9 + ["c"]
    sizes = set()
    for seed in range(30):
        done = split(parts_of(classes), SplitRule("random", val_fraction=0.5, seed=seed), with_val=True)
        assert done.val is not None
        assert set(done.train.classes) == {"a", "b", "c"}
        sizes.add(list(done.val.classes).count("b"))
        assert len(done.val.classes) in (49, 50)
    assert len(sizes) > 1  # a stratified draw would always take the same number


def test_split__several_classes_a_picture_by_group() -> None:
    """Lists of classes, empty ones included, are split by group too."""
    classes = [("a", "b"), ("a",), (), ("b",)] * 10
    done = split(parts_of(classes, groups=[str(index // 4) for index in range(40)]), SplitRule("group"), with_val=True)
    assert done.val is not None
    assert len(done.val.classes) == 8


def test_split__test_and_val_are_shares_of_the_whole() -> None:
    """A fifth for test and a fifth for val leave three fifths, and val does not overlap test."""
    done = split(parts_of(["a", "b"] * 50), SplitRule(val_fraction=0.2, test_fraction=0.2), with_val=True)
    sizes = [len(part.classes) for part in (done.train, done.val, done.test) if part]
    assert sizes == [60, 20, 20]
    assert not names_of(done.val) & names_of(done.test)
    assert split(parts_of(["a", "b"] * 50), SplitRule(test_fraction=0.2), with_val=False).val is None


def test_split__groups_in_names() -> None:
    """An expression finds groups in names; splits that were given and part a group are refused."""
    names = [f"patient_{index // 4}/{index}.png" for index in range(40)]
    parts = parts_of(["a", "b"] * 20, names=names)
    done = split(parts, SplitRule("group", group_pattern=r"patient_(\d+)"), with_val=True)
    people = [{name.partition("/")[0] for name in names_of(part)} for part in (done.train, done.val)]
    assert not people[0] & people[1]
    with pytest.raises(RequestError, match="finds nothing in 40 paths, such as patient_0/0.png"):
        split(parts, SplitRule("group", group_pattern="person"), with_val=True)
    given_val = Parts(parts.train, parts_of(["a"], names=["patient_3/x.png"]).train, None, ())
    with pytest.raises(RequestError, match="group 'patient_3' is in train and in val"):
        split(given_val, SplitRule("group", group_pattern="patient_[0-9]+"), with_val=True)


@pytest.mark.parametrize(
    ("parts", "rule", "message"),
    [
        (parts_of(["a", "b"]), {"by": "group"}, "needs to know the groups"),
        (parts_of(["a", "b"]), {"by": "time"}, "needs to know the times"),
        (parts_of(["a", "b"], groups=["x", "x"]), {"by": "group"}, "one group, 'x'"),
        (parts_of(["a", "b"], groups=["x", "y"]), {"by": "group"}, "all pictures of some class"),
        (parts_of(["a", "b"], times=[1, 1]), {"by": "time"}, "one moment"),
        (parts_of(["a", "b"]), {"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        (parts_of(["a", "b"]), {"test_fraction": -1}, "test_fraction is -1"),
        (parts_of(["a", "b"]), {"by": "group", "group_pattern": "("}, "no regular expression"),
    ],
)
def test_split__refuses(parts: Parts, rule: dict[str, object], message: str) -> None:
    """What cannot be split is one line."""
    with pytest.raises(RequestError, match=message):
        split(parts, SplitRule(**rule), with_val=True)  # type: ignore[arg-type]
