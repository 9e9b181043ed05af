"""Tensors that one side leaves out because they never are anything else: put in, or demanded to be just that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rules import Constant, Format, fill, template


def stand_ins(constant: Constant, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Return a constant for every block that needs it; nothing where the file has that tensor in any block.

    A file that has it in some blocks only has lost the others, which a constant would hide.

    Args:
        constant: on the side that `tensors` are of, or on the other.
        tensors: under timm's names.
    """
    if constant.unless in tensors or any(template(constant.name).fullmatch(name) for name in tensors):
        return {}
    found = {name: match for name in tensors if (match := template(constant.like).fullmatch(name))}
    words = "identity" if constant.value == "eye" else f"{constant.value:g} everywhere"
    return {
        fill(constant.name, match.groupdict()): combine(lambda like: _constant(constant, like), [tensors[name]], words)
        for name, match in found.items()
    }


def is_constant(name: str, tensors: Mapping[str, Lazy], layout: Format, config: NetworkConfig) -> bool:
    """Say whether a format leaves a tensor of ours out.

    Args:
        name: timm's.
        tensors: under timm's names.
        layout: the format to be written.
        config: the network.

    Raises:
        NotRepresentable: it does, but the tensor is not the constant that the format takes it for.
    """
    for constant in layout.ours_only:
        match = template(constant.name).fullmatch(name)
        if match and (constant.when is None or constant.when(config)):
            wanted = _constant(constant, tensors[fill(constant.like, match.groupdict())].compute())
            value = tensors[name].compute()
            if value.shape == wanted.shape and torch.equal(value, wanted):
                return True
            is_what = "the identity" if constant.value == "eye" else f"{constant.value:g} everywhere"
            raise NotRepresentable(f"{layout.name} has no place for {name}, which is not {is_what}; {constant.reason}")
    return False


def _constant(constant: Constant, like: Tensor) -> Tensor:
    shape = constant.shape(tuple(like.shape))
    if constant.value == "eye":
        return torch.eye(*shape, dtype=like.dtype, device=like.device)
    return torch.full(shape, float(constant.value), dtype=like.dtype, device=like.device)
