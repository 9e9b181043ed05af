"""Sample order by its properties: the stream, the ranks, the shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_finetune.data.order import balanced_order, epoch_order, eval_indices, global_batch, rank_part, visits

sizes = st.integers(1, 60)


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), num_samples=sizes)
def test_epoch_order__is_a_permutation(seed: int, epoch: int, num_samples: int) -> None:
    """Every sample once; the same when asked again; read-only, because it is shared."""
    order = epoch_order(seed, epoch, num_samples)
    assert sorted(order.tolist()) == list(range(num_samples))
    epoch_order.cache_clear()
    assert np.array_equal(epoch_order(seed, epoch, num_samples), order)
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 0


def test_epoch_order__is_frozen() -> None:
    """The very order, written out: a change here would break every resumed run."""
    assert epoch_order(0, 0, 10).tolist() == [4, 0, 2, 9, 8, 5, 6, 3, 7, 1]


def test_epoch_order__is_fair_and_differs() -> None:
    """Other seeds and epochs give other orders, and every sample comes first about equally often."""
    first = [int(epoch_order(seed, epoch, 8)[0]) for seed in range(40) for epoch in range(40)]
    counts = np.bincount(first, minlength=8)
    assert ((counts - 200) ** 2 / 200).sum() < 30  # chi-square with 7 degrees of freedom: beyond 30 once in 10,000
    assert len({tuple(epoch_order(0, epoch, 20).tolist()) for epoch in range(50)}) == 50
    assert len({tuple(epoch_order(seed, 0, 20).tolist()) for seed in range(50)}) == 50


@given(seed=st.integers(0, 9), num_samples=sizes, batch=st.integers(1, 150), start=st.integers(0, 20))
def test_global_batch__cuts_the_endless_stream(seed: int, num_samples: int, batch: int, start: int) -> None:
    """Steps end to end are the epochs' permutations end to end, also where a batch is larger than an epoch."""
    steps = [
        global_batch(step, seed=seed, num_samples=num_samples, global_batch_size=batch)
        for step in range(start, start + 3)
    ]
    first, last = start * batch, (start + 3) * batch
    stream = [
        (epoch, int(index))
        for epoch in range(first // num_samples, last // num_samples + 1)
        for index in epoch_order(seed, epoch, num_samples)
    ]
    offset = first % num_samples
    seen = [pair for epochs, indices in steps for pair in zip(epochs.tolist(), indices.tolist(), strict=True)]
    assert seen == stream[offset : offset + 3 * batch]
    assert all(epochs.dtype == indices.dtype == np.int64 for epochs, indices in steps)


@given(count=st.integers(0, 100), world_size=st.integers(1, 12))
def test_rank_part__is_contiguous_and_balanced(count: int, world_size: int) -> None:
    """The parts in order are the whole, and differ by one at the most."""
    parts = [rank_part(count, rank, world_size) for rank in range(world_size)]
    assert [index for part in parts for index in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert [index for rank in range(world_size) for index in eval_indices(count, rank, world_size)] == list(
        range(count)
    )


@given(pairs=st.integers(0, 50), world_size=st.integers(1, 12))
def test_rank_part__in_pairs_parts_no_neighbours(pairs: int, world_size: int) -> None:
    """Every part begins and ends between pairs, and the parts in order are the whole."""
    parts = [rank_part(2 * pairs, rank, world_size, in_pairs=True) for rank in range(world_size)]
    assert [index for part in parts for index in range(2 * pairs)[part]] == list(range(2 * pairs))
    assert all(part.start % 2 == part.stop % 2 == 0 for part in parts)
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 2


@given(seed=st.integers(0, 9), epoch=st.integers(0, 9), counts=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_balanced_order__every_class_equally_often(seed: int, epoch: int, counts: list[int]) -> None:
    """Classes differ by one visit at the most, and within a class the pictures do."""
    labels = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(seed, epoch, labels)
    assert len(order) == len(labels)
    by_class = np.bincount(labels[order], minlength=len(counts))
    assert by_class.max() - by_class.min() <= 1
    visits = np.bincount(order, minlength=len(labels))
    for which in range(len(counts)):
        of_class = visits[labels == which]
        assert of_class.max() - of_class.min() <= 1
    assert np.array_equal(balanced_order(seed, epoch, labels), order)


def test_balanced_order__is_frozen_and_differs() -> None:
    """The very order, written out; another epoch takes other pictures of the large class."""
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert balanced_order(0, 0, labels).tolist() == [2, 7, 7, 0, 1, 6, 5, 6]
    large = [set(balanced_order(0, epoch, labels).tolist()) & set(range(6)) for epoch in range(20)]
    assert set.union(*large) == set(range(6))
    assert all(len(each) == 4 for each in large)


def test_global_batch__a_sample_visited_again_is_augmented_anew() -> None:
    """The second visit of an epoch has 2**32 added to its epoch, the third twice that; first visits are the epoch."""
    order = np.array([3, 3, 1, 3, 1, 2])
    epochs, indices = global_batch(
        1, seed=0, num_samples=6, global_batch_size=6, visits_of=lambda epoch: visits(epoch, order)
    )
    assert indices.tolist() == order.tolist()
    assert epochs.tolist() == [1, 1 + 2**32, 1, 1 + 2 * 2**32, 1 + 2**32, 1]
