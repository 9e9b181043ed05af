"""A tensor that is known by name, shape and type before it is computed.

Conversions are written once, on `Lazy` values: applied to a whole state dict they give its tensors, applied to a mapped
file they give a plan, whose tensors are then computed and written one at a time. Shapes of results come from running
the same operation on torch's meta device, so a plan can't promise another shape than the work delivers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lazy:
    """One tensor to be.

    Attributes:
        sources: names of the tensors it is made from, in order.
        meta: an empty tensor on the meta device, of its shape and type.
        operations: what is done to the sources, in words; empty where the one source is taken as it is.
        compute: does it. Called again, it computes again: nothing is kept.
    """

    sources: tuple[str, ...]
    meta: Tensor
    operations: tuple[str, ...]
    compute: Callable[[], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(self.meta.shape)


@dataclass(frozen=True)
class Plan:
    """Tensors to be, under the target's names, and what the source holds beside them.

    Attributes:
        tensors: the target's name to tensor.
        dropped: the source's name to the reason.
        fields: what format, configuration and names tell of the network's config.
        names: the rules' spelling of the file's names to the file's own.
        prefix: what stands before every name of the network in the file.
        aside: tensors without a place that the way back needs, under the source's names; they are in `dropped` too.
        notes: rewrites that were applied, one sentence each.
    """

    tensors: dict[str, Lazy]
    dropped: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    aside: dict[str, Lazy] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def lazily(tensors: Mapping[str, Tensor]) -> dict[str, Lazy]:
    """Return every tensor as a `Lazy` that is already there."""
    return {name: Lazy((name,), _meta(tensor), (), _constantly(tensor)) for name, tensor in tensors.items()}


def computed(lazies: Mapping[str, Lazy]) -> dict[str, Tensor]:
    """Compute every tensor."""
    return {name: lazy.compute() for name, lazy in lazies.items()}


def combine(function: Callable[..., Tensor], parts: Sequence[Lazy], words: str) -> Lazy:
    """Return what a function makes of several tensors, not yet computed.

    Args:
        function: takes as many tensors as there are parts and changes none; works on the meta device too.
        parts: its arguments.
        words: what it does, for the table of a conversion.
    """
    sources = tuple(dict.fromkeys(name for part in parts for name in part.sources))
    before = tuple(dict.fromkeys(word for part in parts for word in part.operations))
    meta = function(*(part.meta for part in parts))
    return Lazy(sources, meta, (*before, words), lambda: function(*(part.compute() for part in parts)))


def cast(value: Lazy, dtype: torch.dtype) -> Lazy:
    """Return a tensor in another type; as it is where it has that type, or is not of a floating-point one."""
    if value.meta.dtype == dtype or not value.meta.is_floating_point():
        return value
    return combine(lambda tensor: tensor.to(dtype), [value], f"to {str(dtype).removeprefix('torch.')}")


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _constantly(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor
