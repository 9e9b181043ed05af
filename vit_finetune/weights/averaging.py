"""Averages of networks, tensor by tensor: the arithmetic of soups and of interpolation. Scores nothing.

Sources: model soups, Wortsman et al. 2022 (arXiv 2203.05482); WiSE-FT, Wortsman et al. 2021 (2109.01903).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError

_MAX_NAMES_SHOWN = 5


def average_state_dicts(
    states: Sequence[Mapping[str, Tensor]], *, coefficients: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean of state dicts that agree in every name, shape and dtype.

    Sums are made in float64, one tensor at a time, and rounded once to the tensor's own dtype. A state of coefficient
    0 takes no part, so that a coefficient of 1 gives its state back bit for bit.

    Args:
        states: one or more; they are not changed.
        coefficients: one a state, 0 or more, with the sum 1; None is the plain mean.

    Returns:
        New tensors, on the CPU.

    Raises:
        RequestError: there is nothing to average, the states differ in a name, shape or dtype, integers in them
            (indices, counters) differ, or the coefficients are no such list.

    Source: 2203.05482, equation of section 2.
    """
    check_alike(states)
    shares = [1 / len(states)] * len(states) if coefficients is None else list(coefficients)
    _check_shares(shares, len(states))
    parts = [(share, state) for share, state in zip(shares, states, strict=True) if share]
    if len(parts) == 1:
        return {name: tensor.detach().cpu().clone() for name, tensor in parts[0][1].items()}
    return {name: _average(name, [(share, state[name]) for share, state in parts]) for name in states[0]}


def interpolate_state_dicts(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) x start + alpha x end; exactly `start` at 0 and exactly `end` at 1.

    Args:
        start: the weights before fine-tuning.
        end: the weights after it.
        alpha: in [0, 1].

    Returns:
        New tensors, on the CPU.

    Raises:
        RequestError: alpha is outside of its range, or the two differ in more than values; see `average_state_dicts`.

    Source: WiSE-FT, 2109.01903, equation 1.
    """
    if not 0 <= alpha <= 1:
        raise RequestError(f"alpha is {alpha}; it goes from 0 (the weights before) to 1 (those after)")
    return average_state_dicts([start, end], coefficients=[1 - alpha, alpha])


def check_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse state dicts that cannot be averaged.

    Args:
        states: one or more.

    Raises:
        RequestError: there is none, or they differ in a name, shape or dtype, or in integers; the first is named.
    """
    if not states:
        raise RequestError("there is nothing to average; give at least one state dict")
    for number, state in enumerate(states[1:], start=2):
        _check_pair(states[0], state, number)


def _check_shares(shares: Sequence[float], count: int) -> None:
    """Refuse coefficients that make no mean."""
    if len(shares) != count:
        raise RequestError(f"{len(shares)} coefficients for {count} state dicts; give one each")
    if not all(share >= 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise RequestError(f"the coefficients are {list(shares)}; they must be 0 or more and add up to 1")


def _check_pair(first: Mapping[str, Tensor], other: Mapping[str, Tensor], number: int) -> None:
    """Refuse a state dict that is of another network than the first."""
    only = sorted({*first} ^ {*other})
    if only:
        more = f" and {len(only) - _MAX_NAMES_SHOWN} more" if len(only) > _MAX_NAMES_SHOWN else ""
        names = ", ".join(f"{name} ({'1' if name in first else number})" for name in only[:_MAX_NAMES_SHOWN])
        raise RequestError(
            f"state dicts 1 and {number} are of different networks; only one of them has: {names}{more}; "
            "average weights of one architecture"
        )
    for name, tensor in first.items():
        theirs = other[name]
        if (tensor.shape, tensor.dtype) != (theirs.shape, theirs.dtype):
            raise RequestError(
                f"{name} is {list(tensor.shape)} {_short(tensor)} in state dict 1, {list(theirs.shape)} "
                f"{_short(theirs)} in {number}; average weights of one architecture, head and dtype"
            )
        if not tensor.is_floating_point() and not torch.equal(tensor.cpu(), theirs.cpu()):
            raise RequestError(f"{name} holds integers that differ in state dicts 1 and {number}; they have no average")


def _average(name: str, parts: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted sum of tensors, in the dtype they have."""
    first = parts[0][1].detach().cpu()
    if first.is_complex():
        raise RequestError(f"{name} is {_short(first)}; only real numbers are averaged")
    if not first.is_floating_point():
        return first.clone()
    total = torch.zeros(first.shape, dtype=torch.float64)
    for share, tensor in parts:
        total.add_(tensor.detach().cpu().double(), alpha=share)
    return total.to(first.dtype)


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
