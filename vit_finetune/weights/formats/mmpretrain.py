"""ViT and DeiT as mmpretrain (and mmcls before it) writes them.

Source: mmpretrain 1.x `models/backbones/vision_transformer.py`, `deit.py`, `models/heads` and its converters from other
libraries. mmcv is not at hand, so this is verified against a restatement of those files, bitwise both ways.

Epsilon and activation are in the configuration file of a training run, which is Python and isn't read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format, Rule

_LAYER = "layers.{i}"


def _is_gated(config: ViTConfig) -> bool:
    return config.mlp_layer == "swiglu_packed"


def _told(shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any]) -> dict[str, Any]:
    del fields
    if "ln1.weight" in shapes and "ln2.weight" in shapes:
        raise NotRepresentable(
            "ln1 and ln2: out_type='avg_featmap' with final_norm=True normalises before and after pooling, which no "
            "network here does; train it with final_norm=False, as mmpretrain's own configurations do"
        )
    gated = {"act_layer": "silu"} if "layers.0.ffn.w12.weight" in shapes else {}
    return gated | ({"global_pool": "token"} if "ln1.weight" in shapes and "cls_token" in shapes else {})


def _check(config: ViTConfig) -> str:
    hidden = int(config.embed_dim * config.mlp_ratio)
    if config.global_pool == "avg" and config.final_norm and not config.norm_after_pool:
        return "a norm before the mean (its own, ln2, comes after)"
    if config.global_pool == "token" and config.norm_after_pool:
        return "a norm behind the class token's pooling (its own, ln1, is before)"
    if _is_gated(config) and (config.act_layer != "silu" or hidden % 16):
        return f"a gated MLP of {hidden} rows with act_layer={config.act_layer!r} (it holds multiples of 16, 'silu')"
    return ""


FORMATS = (
    Format(
        name="mmpretrain",
        library="mmpretrain",
        present=("patch_embed.projection.weight", "layers.0.ln1.weight"),
        prefixes=("backbone.",),
        prefix=lambda config: "backbone.",  # noqa: ARG005 - as other formats' prefixes, which depend on the network
        rules=(
            Rule("cls_token", "cls_token"),
            Rule("dist_token", "dist_token"),
            Rule("pos_embed", "pos_embed"),
            Rule("patch_embed.projection.{kind}", "patch_embed.proj.{kind}"),
            Rule("pre_norm.{kind}", "norm_pre.{kind}"),
            Rule(f"{_LAYER}.ln1.{{kind}}", "blocks.{i}.norm1.{kind}"),
            Rule(f"{_LAYER}.attn.qkv.{{kind}}", "blocks.{i}.attn.qkv.{kind}"),
            Rule(f"{_LAYER}.attn.proj.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
            Rule(f"{_LAYER}.attn.gamma1.weight", "blocks.{i}.ls1.gamma"),
            Rule(f"{_LAYER}.ln2.{{kind}}", "blocks.{i}.norm2.{kind}"),
            Rule(f"{_LAYER}.ffn.w12.{{kind}}", "blocks.{i}.mlp.fc1.{kind}", when=_is_gated),
            Rule(f"{_LAYER}.ffn.w3.{{kind}}", "blocks.{i}.mlp.fc2.{kind}", when=_is_gated),
            Rule(f"{_LAYER}.ffn.layers.0.0.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
            Rule(f"{_LAYER}.ffn.layers.1.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
            Rule(f"{_LAYER}.ffn.gamma2.weight", "blocks.{i}.ls2.gamma"),
            Rule("ln1.{kind}", "norm.{kind}"),
            Rule("ln2.{kind}", "fc_norm.{kind}"),
            Rule("/head.fc.{kind}", "head.{kind}", when=lambda config: config.global_pool == "avg"),
            Rule("/head.layers.head.{kind}", "head.{kind}"),
            Rule("/head.layers.head_dist.{kind}", "head_dist.{kind}"),
        ),
        refuse={
            "/head.layers.pre_logits.{kind}": "hidden_dim puts a tanh layer before the head, which no network has "
            "here; remove head.layers and train a new head",
        },
        holds={
            "norm_eps": (),
            "act_layer": (),
            "global_pool": ("token", "avg"),
            "fc_norm": (False, True),
            "final_norm": (True, False),
            "class_token": (True, False),
            "distilled": (True, False),
            "qkv_bias": (True, False),
            "pre_norm": (True, False),
            "init_values": (),
            "mlp_layer": ("mlp", "swiglu_packed"),
        },
        told=_told,
        check=_check,
        file="model.pth",
        pos_embed="hf",
    ),
)
