"""Averages of state dicts, with expectations written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.weights import average_state_dicts, interpolate_state_dicts


def state(weight: list[float], bias: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"weight": torch.tensor(weight, dtype=dtype), "bias": torch.tensor([bias], dtype=dtype)}


A, B, C = state([1.0, 4.0], 0.0), state([3.0, 0.0], 6.0), state([5.0, 2.0], 3.0)


def test_average__is_the_mean_and_changes_nothing() -> None:
    """Three two-parameter networks have the mean that one writes down, and are as they were."""
    before = {name: tensor.clone() for name, tensor in A.items()}
    mean = average_state_dicts([A, B, C])
    assert mean["weight"].tolist() == [3.0, 2.0]
    assert mean["bias"].tolist() == [3.0]
    assert all(torch.equal(before[name], A[name]) for name in A)


def test_average__takes_coefficients() -> None:
    """0.5 A + 0.25 B + 0.25 C, by hand."""
    mean = average_state_dicts([A, B, C], coefficients=[0.5, 0.25, 0.25])
    assert mean["weight"].tolist() == [2.5, 2.5]
    assert mean["bias"].tolist() == [2.25]


def test_average__sums_in_float64_and_rounds_once() -> None:
    """A mean of half-precision numbers that a half-precision sum would lose: 2048 + 1 + 1 + 2 over four."""
    halves = [{"w": torch.tensor([value], dtype=torch.float16)} for value in (2048.0, 1.0, 1.0, 2.0)]
    mean = average_state_dicts(halves)
    assert mean["w"].dtype == torch.float16
    assert mean["w"].item() == 513.0


def test_interpolate__end_points_are_exact() -> None:
    """Alpha 0 and 1 give the two sides back bit for bit, in tensors of their own, even where the other is infinite."""
    start, end = {"w": torch.tensor([0.1, float("inf")])}, {"w": torch.tensor([float("nan"), 0.3])}
    for alpha, side in ((0.0, start), (1.0, end)):
        mixed = interpolate_state_dicts(start, end, alpha)
        assert mixed["w"].numpy().tobytes() == side["w"].numpy().tobytes()
        assert mixed["w"].data_ptr() != side["w"].data_ptr()
    assert interpolate_state_dicts(A, B, 0.25)["weight"].tolist() == [1.5, 3.0]


def test_average__integers_must_agree() -> None:
    """Index tables and counters are kept where they agree and refused where they do not."""
    one, two = {"index": torch.tensor([0, 1])}, {"index": torch.tensor([0, 2])}
    assert average_state_dicts([one, {"index": torch.tensor([0, 1])}])["index"].tolist() == [0, 1]
    with pytest.raises(RequestError, match="index holds integers that differ in state dicts 1 and 2"):
        average_state_dicts([one, two])


@pytest.mark.parametrize(
    ("states", "options", "message"),
    [
        ([], {}, "nothing to average"),
        ([A, {"weight": A["weight"]}], {}, r"only one of them has: bias \(1\)"),
        ([A, {**A, "head": A["bias"]}], {}, r"only one of them has: head \(2\)"),
        ([A, {**A, "bias": torch.zeros(2)}], {}, r"bias is \[1\] float32 in state dict 1, \[2\] float32 in 2"),
        (
            [A, state([1.0, 2.0], 0.0, torch.float64)],
            {},
            r"weight is \[2\] float32 in state dict 1, \[2\] f",
        ),
        ([A, B], {"coefficients": [1.0]}, "1 coefficients for 2 state dicts"),
        ([A, B], {"coefficients": [0.5, 0.6]}, "add up to 1"),
        ([A, B], {"coefficients": [1.5, -0.5]}, "must be 0 or more"),
        ([A, B], {"coefficients": [float("nan"), 1.0]}, "must be 0 or more"),
    ],
)
def test_average__refuses(states: list[Any], options: dict[str, Any], message: str) -> None:
    """States of different networks, and coefficients that make no mean, are refused with the first difference."""
    with pytest.raises(RequestError, match=message):
        average_state_dicts(states, **options)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_interpolate__refuses_alpha(alpha: float) -> None:
    """Alpha outside of [0, 1] leaves the line."""
    with pytest.raises(RequestError, match="it goes from 0"):
        interpolate_state_dicts(A, B, alpha)
