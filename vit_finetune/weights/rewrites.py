"""Changes of a state dict that leave the network's function as it is and its layout another one.

Two kinds. A `Rewrite` belongs to a format: what its rules give is not quite ours yet, because the difference spans
several tensors. A `Widening` makes a network fit a format that lacks one of its options: it is applied only where the
format asks for it, and reported. All work on `Lazy` tensors under timm's names and change no argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.lazy import Lazy, combine

Tensors = Mapping[str, Lazy]


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What a format's tensors need after its rules, and before them on the way back.

    Attributes:
        words: what it does, for the report.
        read: from what the rules gave, and the fields known, to ours.
        write: from ours, and the network, to what the rules take.
        aside: why that which `read` takes away has no place in ours and is kept for the way back; empty where it takes
            nothing away for good.
    """

    words: str
    read: Callable[[Tensors, Mapping[str, Any]], dict[str, Lazy]]
    write: Callable[[Tensors, Any], dict[str, Lazy]]
    aside: str = ""

    def changes(self, before: Tensors, after: Tensors) -> bool:
        """Say whether there was anything to do."""
        return before.keys() != after.keys() or any(after[name] is not value for name, value in before.items())


def _merge_class_position(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:  # noqa: ARG001 - as all
    if not {"cls_token", "pos_embed"} <= tensors.keys():
        return dict(tensors)
    token, table = tensors["cls_token"], tensors["pos_embed"]
    merged = combine(lambda x, positions: x + positions[:, :1], [token, table], "class position added to the token")
    return {
        **tensors,
        "cls_token": merged,
        "pos_embed": combine(lambda x: x[:, 1:], [table], "class position taken off"),
    }


def _split_class_position(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:  # noqa: ARG001 - one signature for all
    if not {"cls_token", "pos_embed"} <= tensors.keys():
        return dict(tensors)
    return {**tensors, "pos_embed": _with_zero_rows(tensors["pos_embed"], 1)}


CLASS_POSITION = Rewrite(
    words="the class token's position is part of the token (timm's no_embed_class)",
    read=_merge_class_position,
    write=_split_class_position,
)


@dataclass(frozen=True, kw_only=True)
class Widening:
    """How a network without an option is made out of one that has it, or the other way round.

    Attributes:
        field: the option.
        value: what it is afterwards.
        applies: whether this network is of the kind that can be changed so.
        words: what is done, for the report.
        change: does it.
    """

    field: str
    value: Any
    applies: Callable[[NetworkConfig], bool]
    words: str
    change: Callable[[Tensors, Any], dict[str, Lazy]]


def _fold_layer_scale(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:  # noqa: ARG001 - one signature for all
    changed = dict(tensors)
    for name in tensors:
        found = re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", name)
        if found:
            layer = found[1] + ("attn.proj" if found[2] == "1" else "mlp.fc2")
            gamma = changed.pop(name)
            for kind in {f"{layer}.weight", f"{layer}.bias"} & tensors.keys():
                changed[kind] = combine(_scaled_rows, [changed[kind], gamma], "LayerScale folded in")
    return changed


def _scaled_rows(value: Tensor, gamma: Tensor) -> Tensor:
    """Multiply each row (each element of a bias) in float64, so that one rounding is all that happens."""
    return (value.double() * gamma.double().reshape(-1, *[1] * (value.ndim - 1))).to(value.dtype)


def _add_zero_qkv_bias(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:  # noqa: ARG001 - one signature for all
    changed = {}
    for name, value in tensors.items():
        changed[name] = value
        if name.endswith(".attn.qkv.weight"):
            bias = combine(lambda weight: weight.new_zeros(weight.shape[0]), [value], "zeros")
            changed[name.removesuffix("weight") + "bias"] = bias
    return changed


def _add_zero_positions(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:
    return {**tensors, "pos_embed": _with_zero_rows(tensors["pos_embed"], config.num_prefix_tokens)}


def _merge_positions(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:
    """Add the prefix tokens' positions to the tokens themselves."""
    changed, start = dict(tensors), 0
    table = tensors["pos_embed"]
    for name, count in (("cls_token", int(config.class_token)), ("reg_token", config.reg_tokens)):
        if count:
            rows = combine(_rows(start, start + count), [table], f"rows {start} to {start + count} of the positions")
            changed[name] = combine(torch.add, [tensors[name], rows], "added to the token")
            start += count
    changed["pos_embed"] = combine(_rows(start, None), [table], "positions of prefix tokens taken off")
    return changed


def _rows(start: int, end: int | None) -> Callable[[Tensor], Tensor]:
    return lambda table: table[:, start:end]


def _with_zero_rows(table: Lazy, count: int) -> Lazy:
    def padded(value: Tensor) -> Tensor:
        return torch.cat([value.new_zeros(1, count, value.shape[2]), value], dim=1)

    return combine(padded, [table], f"{count} zero rows put before the positions")


def _is_plain(config: NetworkConfig) -> bool:
    return isinstance(config, ViTConfig) and config.block_fn == "block" and config.attn_layer == "attention"


def _has_prefix(config: NetworkConfig) -> bool:
    return isinstance(config, ViTConfig) and config.num_prefix_tokens > 0


def _is_not_distilled(config: NetworkConfig) -> bool:
    return isinstance(config, ViTConfig) and not config.distilled


WIDENINGS = (
    Widening(
        field="init_values",
        value=None,
        applies=_is_plain,
        words="LayerScale was folded into the layers before it",
        change=_fold_layer_scale,
    ),
    Widening(
        field="qkv_bias",
        value=True,
        applies=_is_plain,
        words="biases of zeros were put on queries, keys and values",
        change=_add_zero_qkv_bias,
    ),
    Widening(
        field="no_embed_class",
        value=False,
        applies=_has_prefix,
        words="positions of zeros were put in for class and register tokens",
        change=_add_zero_positions,
    ),
    Widening(
        field="no_embed_class",
        value=True,
        applies=_is_not_distilled,
        words="the positions of class and register tokens were added to the tokens",
        change=_merge_positions,
    ),
)
