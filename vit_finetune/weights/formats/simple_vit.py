"""SimpleViT of the package vit-pytorch (lucidrains): no class token, and positions that are in no file.

Source: its wheels 1.2.0 (`simple_vit_first`, whose last norm comes after pooling), 1.6.5 and 1.26.11 (`simple_vit`).
Verified against each: equal in float64, bitwise back. The positions are a fixed sin-cos table, made here for the
picture's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.flat_patches import patch_fields
from vit_finetune.weights.formats.sincos import sincos_table, with_positions
from vit_finetune.weights.formats.vit_pytorch import (
    BLOCK_START,
    HOLDS_NORMED,
    LAST_NORM,
    LAYER,
    NORMED_PATCHES,
    Shapes,
    no_head,
)
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Constant, Format, Rule


def _told_simple(shapes: Shapes, fields: Mapping[str, Any]) -> dict[str, Any]:
    if "img_size" not in fields:
        raise RequestError("SimpleViT's positions are a table that its file leaves out: give img_size, to make it")
    flat = shapes.get("to_patch_embedding.2.weight")
    return patch_fields(flat[-1] if flat else None, fields)


def _check_simple(config: ViTConfig) -> str:
    if config.embed_dim % 4 or config.embed_dim < 8:
        return f"embed_dim={config.embed_dim} (its table of positions needs a multiple of 4, from 8)"
    return no_head(config)


def _without_positions(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:
    found = tensors["pos_embed"].compute()
    wanted = sincos_table(config.grid_size, config.embed_dim).to(found)
    # Sines differ by some units in the last place from one machine to another; of float32, in which they were made.
    tolerance = 8 * max(torch.finfo(found.dtype).eps, torch.finfo(torch.float32).eps)
    if not torch.allclose(found, wanted, rtol=0, atol=tolerance):
        raise NotRepresentable(
            "SimpleViT has no place for pos_embed, which is not its fixed sin-cos table; convert to vit_pytorch_d, "
            "whose positions are learned"
        )
    return {name: value for name, value in tensors.items() if name != "pos_embed"}


_FIXED_POSITIONS = Rewrite(
    words="the fixed sin-cos positions, which no file holds, were put in",
    read=with_positions,
    write=_without_positions,
)


_SIMPLE_BLOCK = (  # without dropout, which took a place in the sequences
    *BLOCK_START,
    Rule(f"{LAYER}.0.to_out.weight", "blocks.{i}.attn.proj.weight"),
    Rule(f"{LAYER}.1.net.3.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
)
_NO_BIAS = (
    Constant(name="blocks.{i}.attn.proj.bias", like="blocks.{i}.attn.proj.weight", reason="it has no such bias"),
)

_HOLDS = HOLDS_NORMED | {"class_token": (False,), "global_pool": ("avg",)}

FORMATS = (
    Format(
        name="simple_vit",
        library="vit-pytorch from 1.3",
        present=("to_patch_embedding.3.weight", "0.to_qkv.weight", "transformer.norm.weight", "linear_head.weight"),
        rules=(*NORMED_PATCHES, *_SIMPLE_BLOCK, LAST_NORM, Rule("linear_head.{kind}", "head.{kind}")),
        ours_only=_NO_BIAS,
        holds=_HOLDS,
        told=_told_simple,
        check=_check_simple,
        rewrites=(_FIXED_POSITIONS,),
        file="model.pt",
    ),
    Format(
        name="simple_vit_first",
        library="vit-pytorch 1.0 to 1.2",
        present=("to_patch_embedding.3.weight", "0.to_qkv.weight", "linear_head.1.weight"),
        rules=(
            *NORMED_PATCHES,
            *_SIMPLE_BLOCK,
            Rule("linear_head.0.{kind}", "fc_norm.{kind}"),
            Rule("linear_head.1.{kind}", "head.{kind}"),
        ),
        ours_only=_NO_BIAS,
        holds=_HOLDS | {"fc_norm": (True,)},
        told=_told_simple,
        check=_check_simple,
        rewrites=(_FIXED_POSITIONS,),
        file="model.pt",
    ),
)
