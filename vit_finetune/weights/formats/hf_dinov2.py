"""DINOv2 as transformers writes it (`Dinov2Model` and its kin, names on disk, and in memory).

Source: transformers 5 `models/dinov2/modeling_dinov2.py`. Verified against the library in both directions, bitwise.
`Dinov2ForImageClassification` applies its classifier to the class token joined with the mean patch, twice our width:
the backbone converts, that head has no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import (
    ATTENTION_ALIASES,
    ATTENTION_RULES,
    LAYER,
    PATCH_RULE,
    config_of,
    fields_from,
    reference,
)
from vit_finetune.weights.rules import Constant, Format, Rule


def _is_gated(config: ViTConfig) -> bool:
    return config.mlp_layer == "swiglu_packed"


def _is_plain(config: ViTConfig) -> bool:
    return config.mlp_layer == "mlp"


def gated_width(config: ViTConfig) -> int:
    """Return the hidden width that the family gives its gated MLP: two thirds, rounded up to a multiple of 8."""
    return (int(config.embed_dim * 4 * 2 / 3) + 7) // 8 * 8


def check_width(config: ViTConfig) -> str:
    """Say why a network can't be written: the family's configuration holds whole ratios and no other gated width."""
    hidden = int(config.embed_dim * config.mlp_ratio)
    if _is_gated(config):
        if config.act_layer != "silu":
            return f"act_layer={config.act_layer!r} in a gated MLP (it holds 'silu')"
        wanted = 2 * gated_width(config)
        return "" if hidden == wanted else f"a gated MLP of {hidden} rows (it holds {wanted} at this width)"
    return "" if hidden % config.embed_dim == 0 else f"mlp_ratio={config.mlp_ratio} (it holds whole numbers)"


def dinov2_fields_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the family's configuration says."""
    return fields_from(config) | ({"act_layer": "silu"} if config.get("use_swiglu_ffn") else {})


def dinov2_config_of(config: ViTConfig, *, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the family's configuration of a network."""
    values = config_of(config, model_type=model_type, architecture=architecture)
    del values["intermediate_size"]
    return values | {
        "mlp_ratio": 4 if _is_gated(config) else int(config.mlp_ratio),
        "hidden_act": "gelu" if _is_gated(config) else values["hidden_act"],
        "use_swiglu_ffn": _is_gated(config),
        "qkv_bias": config.qkv_bias,
        "layerscale_value": config.init_values or 1.0,
        "apply_layernorm": True,
    }


BLOCK_RULES = (
    Rule(f"{LAYER}.norm1.{{kind}}", "blocks.{i}.norm1.{kind}"),
    *ATTENTION_RULES,
    Rule(f"{LAYER}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma"),
    Rule(f"{LAYER}.norm2.{{kind}}", "blocks.{i}.norm2.{kind}"),
    Rule(f"{LAYER}.mlp.fc1.{{kind}}", "blocks.{i}.mlp.fc1.{kind}", when=_is_plain),
    Rule(f"{LAYER}.mlp.fc2.{{kind}}", "blocks.{i}.mlp.fc2.{kind}", when=_is_plain),
    Rule(f"{LAYER}.mlp.weights_in.{{kind}}", "blocks.{i}.mlp.fc1.{kind}", when=_is_gated),
    Rule(
        (f"{LAYER}.mlp.gate_proj.{{kind}}", f"{LAYER}.mlp.up_proj.{{kind}}"),
        "blocks.{i}.mlp.fc1.{kind}",
        "two m ... -> (two m) ...",
        when=_is_gated,
    ),
    Rule(f"{LAYER}.mlp.weights_out.{{kind}}", "blocks.{i}.mlp.fc2.{kind}", when=_is_gated),
    Rule(f"{LAYER}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma"),
)
# In memory, transformers 5 has another name for the output of the gated MLP, and two layers for its input.
BLOCK_ALIASES = {**ATTENTION_ALIASES, f"{LAYER}.mlp.down_proj.{{kind}}": f"{LAYER}.mlp.weights_out.{{kind}}"}
# Networks without LayerScale are written with one that changes nothing.
UNIT_LAYER_SCALE = tuple(
    Constant(name=f"{LAYER}.layer_scale{k}.lambda1", like="blocks.{i}.norm1.weight", value=1.0) for k in (1, 2)
)
MASK_TOKEN = Constant(name="embeddings.mask_token", like="cls_token", shape=lambda shape: (1, shape[-1]))
WIDE_CLASSIFIER = "a head on class token and mean patch together, which has no counterpart here"

HF_DINOV2 = Format(
    name="hf_dinov2",
    library="transformers",
    present=("embeddings.patch_embeddings.projection.weight", "layer_scale1.lambda1"),
    absent=(".register_tokens",),
    prefixes=("dinov2.", "backbone."),
    aliases=BLOCK_ALIASES,
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        PATCH_RULE,
        *BLOCK_RULES,
        Rule("layernorm.{kind}", "norm.{kind}"),
    ),
    theirs_only=(MASK_TOKEN, *UNIT_LAYER_SCALE),
    aside={"embeddings.mask_token": "used in pre-training only", "/classifier.{kind}": WIDE_CLASSIFIER},
    unplaced={"head.{kind}": "its classifier takes class token and mean patch together; leave the head out"},
    holds={
        "norm_eps": (),
        "act_layer": (),
        "qkv_bias": (True, False),
        "init_values": (),
        "mlp_layer": ("mlp", "swiglu_packed"),
    },
    check=check_width,
    config_from=dinov2_fields_from,
    config_to=lambda config: dinov2_config_of(config, model_type="dinov2", architecture="Dinov2Model"),
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_DINOV2,)
