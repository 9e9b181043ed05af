"""DINOv2 as transformers writes it (`Dinov2Model` and its kin, names on disk, and in memory).

Source: transformers 5 `models/dinov2/modeling_dinov2.py`. Verified against the library in both directions, bitwise.
`Dinov2ForImageClassification` applies its classifier to the class token joined with the mean patch, twice our width. A
head on the class token is such a classifier with a mean half of zeros, in both directions; a classifier with another
mean half has no counterpart here, and only its backbone converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rewrites import Rewrite
from vit_finetune.weights.rules import Constant, Format, Rule


def _is_gated(config: ViTConfig) -> bool:
    return config.mlp_layer == "swiglu_packed"


def _is_plain(config: ViTConfig) -> bool:
    return config.mlp_layer == "mlp"


def gated_width(config: ViTConfig) -> int:
    """Return the hidden width that the family gives its gated MLP: two thirds, rounded up to a multiple of 8."""
    return (int(config.embed_dim * 4 * 2 / 3) + 7) // 8 * 8


def check_sizes(config: ViTConfig) -> str:
    """Say why a network can't be written: the family is for squares, whole ratios and one gated width."""
    if config.img_size[0] != config.img_size[1]:
        return f"img_size={config.img_size} (it takes the positions of other pictures than squares for a square grid)"
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


def dinov2_config_of(config: ViTConfig, *, model_type: str, family: str) -> dict[str, Any]:
    """Return the family's configuration of a network.

    Args:
        config: the network.
        model_type: transformers' key of the family.
        family: how its classes' names begin.
    """
    architecture = f"{family}ForImageClassification" if config.num_classes else f"{family}Model"
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


def _on_the_class_token(tensors: Mapping[str, Lazy], fields: Mapping[str, Any]) -> dict[str, Lazy]:
    """Take off the classifier's mean half where it is zero; the whole classifier where it is not."""
    del fields
    if not {"head.weight", "cls_token"} <= tensors.keys():
        return dict(tensors)
    weight, width = tensors["head.weight"], tensors["cls_token"].shape[-1]
    if weight.shape[1:] == (2 * width,) and not weight.compute()[:, width:].count_nonzero():
        return {**tensors, "head.weight": combine(lambda value: value[:, :width], [weight], "mean half taken off")}
    return {name: value for name, value in tensors.items() if not name.startswith("head.")}


def _beside_the_mean(tensors: Mapping[str, Lazy], config: ViTConfig) -> dict[str, Lazy]:
    del config
    if "head.weight" not in tensors:
        return dict(tensors)
    weight = combine(_with_zeros, [tensors["head.weight"]], "zeros for the mean of patches put behind")
    return {**tensors, "head.weight": weight}


def _with_zeros(weight: Tensor) -> Tensor:
    return torch.cat([weight, torch.zeros_like(weight)], dim=1)


CLASSIFIER = Rewrite(
    words="the classifier's half for the mean of patches is zero: it is a head on the class token",
    read=_on_the_class_token,
    write=_beside_the_mean,
    aside=WIDE_CLASSIFIER,
)
HEAD_RULE = Rule("/classifier.{kind}", "head.{kind}")

HF_DINOV2 = Format(
    name="hf_dinov2",
    library="transformers",
    present=("embeddings.patch_embeddings.projection.weight", "layer_scale1.lambda1"),
    absent=(".register_tokens",),
    prefixes=("dinov2.", "backbone."),
    prefix=lambda config: "dinov2." if config.num_classes else "",
    aliases=BLOCK_ALIASES,
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        PATCH_RULE,
        *BLOCK_RULES,
        Rule("layernorm.{kind}", "norm.{kind}"),
        HEAD_RULE,
    ),
    rewrites=(CLASSIFIER,),
    theirs_only=(MASK_TOKEN, *UNIT_LAYER_SCALE),
    aside={"embeddings.mask_token": "used in pre-training only"},
    holds={
        "norm_eps": (),
        "act_layer": (),
        "qkv_bias": (True, False),
        "init_values": (),
        "mlp_layer": ("mlp", "swiglu_packed"),
    },
    check=check_sizes,
    config_from=dinov2_fields_from,
    config_to=lambda config: dinov2_config_of(config, model_type="dinov2", family="Dinov2"),
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_DINOV2,)
