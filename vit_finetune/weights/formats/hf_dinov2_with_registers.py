"""DINOv2 with registers as transformers writes it (`Dinov2WithRegistersModel` and its kin).

The class token has a position and the registers have none. timm says that with `no_embed_class`: the class token's
position is added to the token, once. The sum can't be taken apart again, so the way back gives the same function with a
position of zeros.

Source: transformers 5 `models/dinov2_with_registers/modeling_dinov2_with_registers.py`. Verified against the library in
both directions: the function is the same up to that sum's rounding.
"""

from __future__ import annotations

from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import PATCH_RULE, reference
from vit_finetune.weights.formats.hf_dinov2 import (
    BLOCK_ALIASES,
    BLOCK_RULES,
    CLASSIFIER,
    HEAD_RULE,
    MASK_TOKEN,
    UNIT_LAYER_SCALE,
    check_sizes,
    dinov2_config_of,
    dinov2_fields_from,
)
from vit_finetune.weights.rewrites import CLASS_POSITION
from vit_finetune.weights.rules import Format, Rule


def _check(config: ViTConfig) -> str:
    return check_sizes(config) if config.reg_tokens else "no register tokens (hf_dinov2 holds it)"


def _config_to(config: ViTConfig) -> dict[str, Any]:
    values = dinov2_config_of(config, model_type="dinov2_with_registers", family="Dinov2WithRegisters")
    return {**values, "num_register_tokens": config.reg_tokens}


HF_DINOV2_WITH_REGISTERS = Format(
    name="hf_dinov2_with_registers",
    library="transformers",
    present=(
        "embeddings.patch_embeddings.projection.weight",
        "layer_scale1.lambda1",
        "embeddings.cls_token",
        "embeddings.register_tokens",
    ),
    prefixes=("dinov2_with_registers.", "backbone."),
    prefix=lambda config: "dinov2_with_registers." if config.num_classes else "",
    aliases=BLOCK_ALIASES,
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.register_tokens", "reg_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        PATCH_RULE,
        *BLOCK_RULES,
        Rule("layernorm.{kind}", "norm.{kind}"),
        HEAD_RULE,
    ),
    rewrites=(CLASS_POSITION, CLASSIFIER),
    theirs_only=(MASK_TOKEN, *UNIT_LAYER_SCALE),
    aside={"embeddings.mask_token": "used in pre-training only"},
    holds={
        "norm_eps": (),
        "act_layer": (),
        "qkv_bias": (True, False),
        "init_values": (),
        "mlp_layer": ("mlp", "swiglu_packed"),
        "no_embed_class": (True,),
        "reg_tokens": (),
    },
    check=_check,
    config_from=dinov2_fields_from,
    config_to=_config_to,
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_DINOV2_WITH_REGISTERS,)
