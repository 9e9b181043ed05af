"""Axes of patterns, sized from the network's fields; and factors on parts of a first axis."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import EinopsError, rearrange
from torch import Tensor

from vit_finetune.common.errors import RequestError

# The field of the config that each axis of a pattern is sized from, for the error that asks for it.
_FIELD_OF_AXIS = {"nh": "num_heads", "hd": "num_heads", "p": "patch_size", "q": "patch_size", "c": "in_chans"}


def axis_sizes(pattern_side: str, fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that the network's fields give to the axes of one side of a pattern."""
    sizes = {"qkv": 3, "kv": 2}
    heads, width = fields.get("num_heads"), fields.get("embed_dim")
    if heads:
        sizes["nh"] = heads
        head_width = fields.get("attn_head_dim") or (width // heads if width else None)
        sizes |= {"hd": head_width} if head_width else {}
    if patch := fields.get("patch_size"):
        sizes["p"], sizes["q"] = (patch, patch) if isinstance(patch, int) else patch
    sizes |= {axis: fields[name] for axis, name in (("c", "in_chans"), ("d", "embed_dim")) if fields.get(name)}
    axes = set(re.findall(r"\w+", pattern_side))
    return {axis: size for axis, size in sizes.items() if axis in axes}


def rearranged(value: Tensor, pattern: str, sizes: Mapping[str, int], name: str) -> Tensor:
    """Rearrange by a pattern; say which tensor and which fields where it doesn't fit.

    Raises:
        RequestError: the shape contradicts the pattern, or an axis isn't told by the fields.
    """
    try:
        result: Tensor = rearrange(value, pattern, **sizes)
    except EinopsError as error:
        axes = set(re.findall(r"\w+", pattern)) - sizes.keys()
        wanted = sorted({_FIELD_OF_AXIS[axis] for axis in axes if axis in _FIELD_OF_AXIS})
        ask = f"; if it is right, {', '.join(wanted)} must be known: give it" if wanted else ""
        raise RequestError(
            f"{name} has the shape {list(value.shape)}, which doesn't fit {pattern!r} with {dict(sizes)}{ask}"
        ) from error
    return result


# Of shapes alone torch stacks, joins and multiplies only after importing its compiler, which takes seconds.


def stacked(*parts: Tensor) -> Tensor:
    """Return tensors of one shape along a new first axis; of meta tensors without torch's help."""
    if parts[0].is_meta and len({part.shape for part in parts}) == 1:
        return parts[0].new_empty(len(parts), *parts[0].shape)
    return torch.stack(parts)


def joined(*parts: Tensor) -> Tensor:
    """Return tensors one after the other along their first axis; of meta tensors without torch's help."""
    if parts[0].is_meta and len({part.shape[1:] for part in parts}) == 1:
        return parts[0].new_empty(sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return torch.cat(parts)


def times(factors: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Return the function that multiplies equal parts of a first axis, in float64, by one factor each."""

    def scaled(value: Tensor) -> Tensor:
        if value.is_meta:
            return value
        parts = value.double().chunk(len(factors))
        return torch.cat([part * factor for part, factor in zip(parts, factors, strict=True)]).to(value.dtype)

    return scaled


def factors_of(scale: Callable[[Mapping[str, Any]], Sequence[float]], fields: Mapping[str, Any]) -> tuple[float, ...]:
    """Return a rule's factors for a network.

    Raises:
        RequestError: a field is needed that nothing tells.
    """
    try:
        return tuple(scale(fields))
    except KeyError as error:
        raise RequestError(f"weights do not tell {error.args[0]}, which their scale depends on; give it") from error


def factors_in_words(factors: Sequence[float]) -> str:
    """Return what `times` does, for the table of a conversion."""
    return "times " + ", ".join(f"{factor:.6g}" for factor in factors)
