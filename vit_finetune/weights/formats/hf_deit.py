"""DeiT as transformers writes it, with one head or with two.

`DeiTForImageClassification` keeps the distillation token but has one head, on the class token: in our words a register
token with a position, not timm's distilled network. `DeiTForImageClassificationWithTeacher` is that network: two heads,
whose mean both libraries return. `DeiTModel` has no head to tell them apart and is read as the first.

Source: transformers 5 `models/deit/modeling_deit.py`. Verified against the library in both directions, bitwise.
"""

from __future__ import annotations

from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import PATCH_RULE, VIT_ALIASES, VIT_BLOCK_RULES, config_of, fields_from, reference
from vit_finetune.weights.rules import Format, Rule

_PRESENT = ("embeddings.patch_embeddings.projection.weight", "embeddings.distillation_token")
_RULES = (
    Rule("embeddings.cls_token", "cls_token"),
    Rule("embeddings.position_embeddings", "pos_embed"),
    PATCH_RULE,
    *VIT_BLOCK_RULES,
    Rule("layernorm.{kind}", "norm.{kind}"),
)
_DROP = {"pooler.dense.{kind}": "a tanh layer on the class token that classifiers don't use"}
_ASIDE = {
    "/decoder.{rest}": "the decoder of masked pre-training",
    "embeddings.mask_token": "used in masked pre-training only",
}
_HOLDS: dict[str, tuple[Any, ...]] = {"norm_eps": (), "act_layer": (), "qkv_bias": (True, False)}


def _config_of(config: ViTConfig, architecture: str) -> dict[str, Any]:
    return {**config_of(config, model_type="deit", architecture=architecture), "qkv_bias": config.qkv_bias}


def _config_to(config: ViTConfig) -> dict[str, Any]:
    return _config_of(config, "DeiTForImageClassification" if config.num_classes else "DeiTModel")


def _needs_heads(config: ViTConfig) -> str:
    return "" if config.num_classes else "no heads (the class with two tokens to pool has two heads; keep them)"


HF_DEIT = Format(
    name="hf_deit",
    library="transformers",
    present=_PRESENT,
    absent=(".distillation_classifier.",),
    prefixes=("deit.",),
    prefix=lambda config: "deit." if config.num_classes else "",
    aliases=VIT_ALIASES,
    rules=(
        *_RULES,
        Rule("embeddings.distillation_token", "reg_token"),
        Rule("/classifier.{kind}", "head.{kind}"),
    ),
    drop=_DROP,
    aside=_ASIDE,
    holds={**_HOLDS, "reg_tokens": (1,)},
    config_from=fields_from,
    config_to=_config_to,
    reference=reference,
    pos_embed="hf",
)

HF_DEIT_DISTILLED = Format(
    name="hf_deit_distilled",
    library="transformers",
    present=(*_PRESENT, "cls_classifier.weight", "distillation_classifier.weight"),
    prefixes=("deit.",),
    prefix=lambda config: "deit.",  # noqa: ARG005 - one signature for all formats
    aliases=VIT_ALIASES,
    rules=(
        *_RULES,
        Rule("embeddings.distillation_token", "dist_token"),
        Rule("/cls_classifier.{kind}", "head.{kind}"),
        Rule("/distillation_classifier.{kind}", "head_dist.{kind}"),
    ),
    drop=_DROP,
    aside=_ASIDE,
    holds={**_HOLDS, "distilled": (True,)},
    check=_needs_heads,
    config_from=fields_from,
    config_to=lambda config: _config_of(config, "DeiTForImageClassificationWithTeacher"),
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_DEIT, HF_DEIT_DISTILLED)
