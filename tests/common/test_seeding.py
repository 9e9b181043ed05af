"""Seeds: pinned for good, different for different places, within what torch, numpy and random take."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_finetune.common.seeding import derive_seed

parts = st.lists(st.one_of(st.integers(), st.text(max_size=8)), max_size=4)


@pytest.mark.parametrize(
    ("given_parts", "seed"),
    [
        ((0,), 3581690635855307741),
        ((0, "order", 0), 8092615236773915655),
        ((0, "augment", 3, 17), 4770629671863177614),
        ((12345678901234567890, "init"), 4977907689095862137),
    ],
)
def test_derive_seed__is_pinned(given_parts: tuple[int | str, ...], seed: int) -> None:
    """The seeds never change: a run of yesterday repeats tomorrow, on any machine and Python."""
    assert derive_seed(*given_parts) == seed


def test_derive_seed__tells_types_places_and_lengths_apart() -> None:
    """A number is not the word for it, and neither order nor grouping of the parts can be confused."""
    different = [(1,), ("1",), (1, 2), (2, 1), (12,), ("1", "2"), ("12",), (1, 2, ""), (), ("",), (0,), (-1,)]
    assert len({derive_seed(*given_parts) for given_parts in different}) == len(different)


@given(parts)
def test_derive_seed__range(given_parts: list[int | str]) -> None:
    """Every seed is a non-negative 63-bit integer, and the same parts give the same one."""
    seed = derive_seed(*given_parts)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(*given_parts)


def test_derive_seed__is_taken_by_every_generator() -> None:
    """torch, numpy and random take the seeds as they are, and an int64 tensor holds them."""
    for position in range(50):
        seed = derive_seed(0, "any", position)
        torch.Generator().manual_seed(seed)
        np.random.default_rng(seed)
        random.Random(seed)
        assert torch.tensor([seed], dtype=torch.int64).item() == seed


def test_derive_seed__bits_are_even() -> None:
    """Neighbouring positions give unrelated bits: each of the 63 is set about half of the time."""
    seeds = np.array([derive_seed(0, "order", position) for position in range(4000)], dtype=np.uint64)
    shares = [float(((seeds >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(63)]
    assert min(shares) > 0.45
    assert max(shares) < 0.55
