"""DINOv3 as transformers writes it (`DINOv3ViTModel` and `DINOv3ViTBackbone`, names on disk, and in memory).

A network with rotary positions: timm's `vit_*_dinov3` without biases on queries and values, `*_qkvb` with them. The
library has no classifier of this family, and its networks take any picture that patches divide.

Source: transformers 5 `models/dinov3_vit/modeling_dinov3_vit.py`. Verified against the library in both directions,
bitwise. Its angles are float32 in any network, so that float64 outputs agree to about 1e-7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.weights.formats.hf import config_of, fields_from, reference
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Constant, Format, Rule

# What tells DINOv3 from the other networks with rotary positions, under timm's names.
DINOV3_HOLDS: dict[str, tuple[Any, ...]] = {
    "global_pool": ("avg", "token", ""),
    "qkv_bias": (True, False),
    "attn_type": ("eva", "rope"),
    "swiglu_mlp": (True, False),
    "swiglu_align_to": (),
    "init_values": (),
    "num_reg_tokens": (),
    "use_abs_pos_emb": (False,),
    "use_rot_pos_emb": (True,),
    "rope_type": ("dinov3",),
    "rope_rotate_half": (True,),
    "rope_temperature": (),
    "use_fc_norm": (False,),
    "use_post_transformer_norm": (True,),
    "norm_eps": (),
}
DINOV3_DEFAULTS: dict[str, Any] = {"global_pool": "avg", "rope_temperature": 100.0, "dynamic_img_size": True}
_LAYER = "layer.{i}"


def check_dinov3(config: RopeViTConfig) -> str:
    """Say why a network of the family can't be written."""
    packed = config.swiglu_mlp and not config.swiglu_align_to
    return "a gated MLP with one input layer (it holds two side by side: swiglu_align_to above 0)" if packed else ""


def _config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    found = fields_from(config)
    gated = bool(config.get("use_gated_mlp"))
    wanted = "silu" if gated else "gelu"
    if found.pop("act_layer", wanted) != wanted:
        raise NotRepresentable(
            f"hidden_act={config['hidden_act']!r} with use_gated_mlp={gated}: a network with rotary positions has "
            f"{wanted!r} there"
        )
    return found | ({"rope_temperature": float(config["rope_theta"])} if "rope_theta" in config else {})


def _config_to(config: RopeViTConfig) -> dict[str, Any]:
    values = config_of(config, model_type="dinov3_vit", architecture="DINOv3ViTModel")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        del values[name]
    return values | {
        "intermediate_size": config.hidden_width,
        "hidden_act": "silu" if config.swiglu_mlp else "gelu",
        "use_gated_mlp": config.swiglu_mlp,
        "query_bias": config.qkv_bias,
        "key_bias": config.qkv_bias and config.attn_type == "rope",
        "value_bias": config.qkv_bias,
        "layerscale_value": config.init_values or 1.0,
        "num_register_tokens": config.num_reg_tokens,
        "rope_theta": config.rope_temperature,
        "pos_embed_rescale": config.rope_rescale_coords,
    }


def _without_empty_registers(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:  # noqa: ARG001 - as all
    return {name: value for name, value in tensors.items() if name != "reg_token" or value.shape[1]}


HF_DINOV3 = Format(
    name="hf_dinov3",
    library="transformers",
    families=(RopeViTConfig,),
    present=("embeddings.patch_embeddings.weight", "embeddings.register_tokens"),
    aliases={"model.layer.{i}.{rest}": f"{_LAYER}.{{rest}}"},
    rules=(
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.register_tokens", "reg_token"),
        Rule("embeddings.patch_embeddings.{kind}", "patch_embed.proj.{kind}"),
        Rule(f"{_LAYER}.norm1.{{kind}}", "blocks.{i}.norm1.{kind}"),
        Rule(
            tuple(f"{_LAYER}.attention.{part}_proj.{{kind}}" for part in "qkv"),
            "blocks.{i}.attn.qkv.{kind}",
            "qkv o ... -> (qkv o) ...",
        ),
        Rule(f"{_LAYER}.attention.q_proj.bias", "blocks.{i}.attn.q_bias"),
        Rule(f"{_LAYER}.attention.v_proj.bias", "blocks.{i}.attn.v_bias"),
        Rule(f"{_LAYER}.attention.o_proj.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
        Rule(f"{_LAYER}.layer_scale1.lambda1", "blocks.{i}.gamma_1"),
        Rule(f"{_LAYER}.norm2.{{kind}}", "blocks.{i}.norm2.{kind}"),
        Rule(
            (f"{_LAYER}.mlp.gate_proj.{{kind}}", f"{_LAYER}.mlp.up_proj.{{kind}}"),
            ("blocks.{i}.mlp.fc1_g.{kind}", "blocks.{i}.mlp.fc1_x.{kind}"),
            "two m ... -> (two m) ...",
            shares=(1, 1),
        ),
        Rule(f"{_LAYER}.mlp.up_proj.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
        Rule(f"{_LAYER}.mlp.down_proj.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
        Rule(f"{_LAYER}.layer_scale2.lambda1", "blocks.{i}.gamma_2"),
        Rule("norm.{kind}", "norm.{kind}"),
    ),
    rewrites=(
        Rewrite(
            words="an empty table of register tokens is none",
            read=_without_empty_registers,
            write=lambda tensors, config: dict(tensors),  # noqa: ARG005 - the constant below writes it
        ),
    ),
    theirs_only=(
        Constant(name="embeddings.mask_token", like="cls_token", shape=lambda shape: (1, 1, shape[-1])),
        Constant(name="embeddings.register_tokens", like="cls_token", shape=lambda shape: (1, 0, shape[-1])),
        *(Constant(name=f"{_LAYER}.layer_scale{k}.lambda1", like="blocks.{i}.norm1.weight", value=1.0) for k in (1, 2)),
    ),
    aside={"embeddings.mask_token": "used in pre-training only"},
    unplaced={"head.{kind}": "the library has no classifier of this family; leave the head out"},
    holds=DINOV3_HOLDS,
    defaults=DINOV3_DEFAULTS,
    check=check_dinov3,
    config_from=_config_from,
    config_to=_config_to,
    reference=reference,
)

FORMATS = (HF_DINOV3,)
