"""ViT as transformers writes it: `ViT...`, `ViTMSN...` and the encoder of `ViTMAE...`, which share one layout.

Source: transformers 5 `models/vit/modeling_vit.py`, `models/vit_mae`, `models/vit_msn` and `conversion_mapping.py` (on
disk the names are those of version 4). Verified against the library in both directions, bitwise.

Epsilon is 1e-12 in ViT and MAE and 1e-6 in MSN, which keys don't tell apart: it comes from `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import (
    LAYER,
    PATCH_RULE,
    VIT_ALIASES,
    VIT_BLOCK_RULES,
    config_of,
    fields_from,
    reference,
)
from vit_finetune.weights.rules import Format, Rule


def _config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    return fields_from(config)


def _config_to(config: ViTConfig) -> dict[str, Any]:
    architecture = "ViTForImageClassification" if config.num_classes else "ViTModel"
    return {**config_of(config, model_type="vit", architecture=architecture), "qkv_bias": config.qkv_bias}


HF_VIT = Format(
    name="hf_vit",
    library="transformers",
    present=("embeddings.patch_embeddings.projection.weight", "embeddings.cls_token"),
    absent=(
        ".register_tokens",
        ".layer_scale1",
        ".distillation_token",
        ".lambda_1",
        ".relative_position_bias",
        ".mask_token_embeddings",
    ),
    prefixes=("vit.",),
    prefix=lambda config: "vit." if config.num_classes else "",
    # transformers 5 leaves the prefix out of the blocks' names when it saves ViTMSNForImageClassification.
    aliases={**VIT_ALIASES, f"/{LAYER}.{{rest}}": f"{LAYER}.{{rest}}"},
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        PATCH_RULE,
        *VIT_BLOCK_RULES,
        Rule("layernorm.{kind}", "norm.{kind}"),
        Rule("/classifier.{kind}", "head.{kind}"),
    ),
    drop={"pooler.dense.{kind}": "a tanh layer on the class token that classifiers don't use"},
    aside={
        "/decoder.{rest}": "the decoder of masked pre-training",
        "embeddings.mask_token": "used in masked pre-training only",
    },
    holds={"norm_eps": (), "act_layer": (), "qkv_bias": (True, False)},
    config_from=_config_from,
    config_to=_config_to,
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_VIT,)
