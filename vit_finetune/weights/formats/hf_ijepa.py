"""I-JEPA as transformers writes it: ViT's layout without a class token.

Its classifier takes the mean of the normed patches, so the final norm stays before pooling.

Source: transformers 5 `models/ijepa/modeling_ijepa.py`. Verified against the library in both directions, bitwise.
"""

from __future__ import annotations

from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import PATCH_RULE, VIT_ALIASES, VIT_BLOCK_RULES, config_of, fields_from, reference
from vit_finetune.weights.rules import Format, Rule


def _config_to(config: ViTConfig) -> dict[str, Any]:
    architecture = "IJepaForImageClassification" if config.num_classes else "IJepaModel"
    return {**config_of(config, model_type="ijepa", architecture=architecture), "qkv_bias": config.qkv_bias}


HF_IJEPA = Format(
    name="hf_ijepa",
    library="transformers",
    present=("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings", "layernorm.weight"),
    absent=(".cls_token", ".register_tokens", ".layer_scale1", ".lambda_1", ".relative_position_bias"),
    prefixes=("ijepa.",),
    prefix=lambda config: "ijepa." if config.num_classes else "",
    aliases=VIT_ALIASES,
    rules=(
        Rule("embeddings.position_embeddings", "pos_embed"),
        PATCH_RULE,
        *VIT_BLOCK_RULES,
        Rule("layernorm.{kind}", "norm.{kind}"),
        Rule("/classifier.{kind}", "head.{kind}"),
    ),
    drop={"pooler.dense.{kind}": "a tanh layer on the first patch that classifiers don't use"},
    aside={"embeddings.mask_token": "used in masked pre-training only"},
    holds={
        "norm_eps": (),
        "act_layer": (),
        "qkv_bias": (True, False),
        "class_token": (False,),
        "global_pool": ("avg",),
        "fc_norm": (False,),
    },
    config_from=fields_from,
    config_to=_config_to,
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_IJEPA,)
