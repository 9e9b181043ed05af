"""The ViT of the Boostcamp AI Tech notebook (2022), a linear layer on flat patches and layers with names of their own.

Source: the notebook; verified against a restatement of it, bitwise both ways. It pools over all tokens, class token
included, and normalises after that. In training its dropout sits on the skip path, which no network of ours repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.flat_patches import FLAT_TO_KERNEL, patch_fields
from vit_finetune.weights.rules import Format, Rule

_LAYER = "encoders.{i}"


def _told(shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any]) -> dict[str, Any]:
    flat = shapes.get("img_emb.linear.weight")
    return patch_fields(flat[-1] if flat else None, fields)


def _check(config: ViTConfig) -> str:
    return "" if config.num_classes else "no head (its classifier always has one; keep the head, or put one in)"


FORMATS = (
    Format(
        name="aitech",
        library="notebook",
        present=("img_emb.linear.weight", "img_emb.positions", "encoders.0.mha.query.weight"),
        rules=(
            Rule("img_emb.cls_token", "cls_token"),
            Rule("img_emb.positions", "pos_embed", "n d -> 1 n d"),
            Rule("img_emb.linear.weight", "patch_embed.proj.weight", FLAT_TO_KERNEL),
            Rule("img_emb.linear.bias", "patch_embed.proj.bias"),
            Rule(f"{_LAYER}.norm_1.{{kind}}", "blocks.{i}.norm1.{kind}"),
            Rule(
                tuple(f"{_LAYER}.mha.{part}.{{kind}}" for part in ("query", "key", "value")),
                "blocks.{i}.attn.qkv.{kind}",
                "qkv d ... -> (qkv d) ...",
            ),
            Rule(f"{_LAYER}.mha.linear.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
            Rule(f"{_LAYER}.norm_2.{{kind}}", "blocks.{i}.norm2.{kind}"),
            Rule(f"{_LAYER}.mlp.linear_1.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
            Rule(f"{_LAYER}.mlp.linear_2.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
            Rule("normalization.{kind}", "fc_norm.{kind}"),
            Rule("classification_head.{kind}", "head.{kind}"),
        ),
        holds={"norm_eps": (1e-5,), "global_pool": ("avg",), "fc_norm": (True,), "pool_include_prefix": (True,)},
        told=_told,
        check=_check,
        file="model.pt",
    ),
)
