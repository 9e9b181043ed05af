"""The releases of facebook research whose names are timm's but for a few: DINO, MAE, DeiT-III, DINOv2.

DeiT's files, DINO's backbones, MAE's encoders and MAE's fine-tuned networks have timm's names and nothing else: they
are read and written as `timm`. What remains: DINO's training files (a network behind `backbone.`, with the projection
head of the training), MAE's with the decoder, DeiT-III (its own name for LayerScale), and DINOv2 (its own names for
registers and the gated MLP, and blocks in numbered chunks).

Sources: facebookresearch/dino `vision_transformer.py`, /mae `models_mae.py`, /deit `models_v2.py`, /dinov2
`models/vision_transformer.py`. Verified against restatements of these networks, bitwise on the way back. DINOv2 with
registers changes its form (see `CLASS_POSITION`): its function comes back, not its bits.

Epsilon is 1e-6 in all of them; the number of heads is known by the name of the builder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf_dinov2 import WIDE_CLASSIFIER
from vit_finetune.weights.formats.timm import KIN
from vit_finetune.weights.rewrites import CLASS_POSITION
from vit_finetune.weights.rules import Constant, Format, Rule

_PATCH_WEIGHT = "patch_embed.proj.weight"
_SAME_EMBEDDING = tuple(Rule(name, name) for name in ("cls_token", "pos_embed", "patch_embed.proj.{kind}"))
SAME_BLOCK = tuple(
    Rule(f"blocks.{{i}}.{part}.{{kind}}", f"blocks.{{i}}.{part}.{{kind}}")
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
)
_SAME_NORM = Rule("norm.{kind}", "norm.{kind}")
_SAME_HEAD = Rule("head.{kind}", "head.{kind}")
_SAME = (*_SAME_EMBEDDING, *SAME_BLOCK, _SAME_NORM)


def _kin_but(*marks: str) -> tuple[str, ...]:
    return tuple(mark for mark in KIN if mark not in marks)


_DECODER = "the decoder of masked pre-training"
MAE = Format(
    name="facebook_mae",
    library="facebookresearch/mae",
    present=(_PATCH_WEIGHT, "decoder_embed.weight"),
    absent=_kin_but(".decoder_embed", ".decoder_pos_embed", ".mask_token"),
    rules=_SAME,
    aside={
        "mask_token": "used in masked pre-training only",
        **{f"decoder_{part}": _DECODER for part in ("pos_embed", "embed.{rest}", "blocks.{rest}")},
        **{f"decoder_{part}": _DECODER for part in ("norm.{rest}", "pred.{rest}")},
    },
    unplaced={
        "head.{kind}": "a pre-training file has no classifier; convert to timm, whose names MAE's fine-tuning has"
    },
    holds={"qkv_bias": (True,)},
    defaults={"norm_eps": 1e-6, "act_layer": "gelu"},
    file="model.pth",
    wrapper="model",
)

_PROJECTION = "the projection head of self-supervised training, which is no classifier"
DINO = Format(
    name="facebook_dino",
    library="facebookresearch/dino",
    present=(_PATCH_WEIGHT, "head.last_layer.weight_v|backbone.patch_embed.proj.weight"),
    absent=KIN,
    prefixes=("backbone.",),
    prefix=lambda config: "backbone.",  # noqa: ARG005 - the same for every network
    rules=_SAME,
    aside={f"{place}head.{part}": _PROJECTION for place in ("/", "") for part in ("mlp.{rest}", "last_layer.{rest}")},
    unplaced={"head.{kind}": "a training file has no classifier; leave the head out, or convert to timm"},
    defaults={"norm_eps": 1e-6, "act_layer": "gelu"},
    file="model.pth",
    wrapper="teacher",
    pos_embed="facebook",
)

DEIT3 = Format(
    name="facebook_deit3",
    library="facebookresearch/deit",
    present=(_PATCH_WEIGHT, "gamma_1", "pos_embed", "attn.qkv.bias"),
    # gamma_1 is EVA's and BEiT's name too, in networks with rotary or relative positions.
    absent=(*_kin_but(".gamma_1"), ".reg_token", ".norm_pre.", ".attn.q_proj."),
    rules=(
        *_SAME_EMBEDDING,
        *SAME_BLOCK,
        Rule("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
        Rule("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
        _SAME_NORM,
        _SAME_HEAD,
    ),
    theirs_only=tuple(
        Constant(name=f"blocks.{{i}}.gamma_{k}", like="blocks.{i}.norm1.weight", value=1.0) for k in (1, 2)
    ),
    holds={"init_values": (), "no_embed_class": (True,)},
    defaults={"norm_eps": 1e-6, "act_layer": "gelu"},
    file="model.pth",
    wrapper="model",
)


def _dinov2_told(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    gated = any(name.endswith(".mlp.w12.weight") for name in shapes)
    return {"act_layer": "silu" if gated else "gelu"}


def _dinov2_check(config: ViTConfig) -> str:
    hidden, gated = int(config.embed_dim * config.mlp_ratio), config.mlp_layer == "swiglu_packed"
    if config.act_layer != ("silu" if gated else "gelu"):
        return f"act_layer={config.act_layer!r} with mlp_layer={config.mlp_layer!r} (it holds gelu, and silu if gated)"
    if gated and hidden % 16:
        return f"a gated MLP of {hidden} rows (it holds multiples of 16)"
    return ""


def _registers_check(config: ViTConfig) -> str:
    return _dinov2_check(config) if config.reg_tokens else "no register tokens (facebook_dinov2 holds it)"


def _is_gated(config: ViTConfig) -> bool:
    return config.mlp_layer == "swiglu_packed"


TRAINING_HEAD = "a head of self-supervised training, which is no classifier"

DINOV2 = Format(
    name="facebook_dinov2",
    library="facebookresearch/dinov2",
    present=(_PATCH_WEIGHT, "mask_token|mlp.w12.weight|blocks.0.0.norm1.weight"),
    absent=(
        *_kin_but(".mask_token", ".mlp.w12", ".blocks.0.0."),
        ".register_tokens",
    ),
    prefixes=("backbone.",),
    # Large networks are built in chunks; the second number counts all blocks.
    aliases={"blocks.{j}.{i}.{rest}": "blocks.{i}.{rest}"},
    rules=(
        *_SAME_EMBEDDING,
        Rule("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma"),
        Rule("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma"),
        Rule("blocks.{i}.mlp.w12.{kind}", "blocks.{i}.mlp.fc1.{kind}", when=_is_gated),
        Rule("blocks.{i}.mlp.w3.{kind}", "blocks.{i}.mlp.fc2.{kind}", when=_is_gated),
        *SAME_BLOCK,
        _SAME_NORM,
    ),
    theirs_only=(
        Constant(name="mask_token", like="cls_token", shape=lambda shape: (1, shape[-1])),
        *(Constant(name=f"blocks.{{i}}.ls{k}.gamma", like="blocks.{i}.norm1.weight", value=1.0) for k in (1, 2)),
    ),
    aside={
        "mask_token": "used in pre-training only",
        **dict.fromkeys(("/linear_head.{kind}", "linear_head.{kind}"), WIDE_CLASSIFIER),
        **dict.fromkeys(("/dino_head.{rest}", "/ibot_head.{rest}"), TRAINING_HEAD),
    },
    unplaced={"head.{kind}": "its classifier takes class token and mean patch together; leave the head out"},
    holds={
        "init_values": (),
        "mlp_layer": ("mlp", "swiglu_packed"),
        "act_layer": ("gelu", "silu"),
    },
    defaults={"norm_eps": 1e-6},
    told=_dinov2_told,
    check=_dinov2_check,
    file="model.pth",
    pos_embed="facebook",
)

DINOV2_REGISTERS = replace(
    DINOV2,
    name="facebook_dinov2_registers",
    present=(_PATCH_WEIGHT, "register_tokens"),
    absent=_kin_but(".mask_token", ".mlp.w12", ".blocks.0.0.", ".register_tokens"),
    rules=(Rule("register_tokens", "reg_token"), *DINOV2.rules),
    rewrites=(CLASS_POSITION,),
    holds={**DINOV2.holds, "reg_tokens": (), "no_embed_class": (True,)},
    check=_registers_check,
)

FORMATS = (MAE, DINO, DEIT3, DINOV2, DINOV2_REGISTERS)
