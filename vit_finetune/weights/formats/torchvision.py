"""ViT as torchvision writes it (`vit_b_16` and its kin), in both spellings of the MLP.

Source: torchvision 0.29 `models/vision_transformer.py`. Verified against the library in both directions, bitwise.
Queries, keys and values are one matrix there too. Epsilon, activation and a square picture are fixed; the number of
heads is known by the name of the builder and leaves no trace in the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format, Rule

_LAYER = "encoder.layers.encoder_layer_{i}"


def _check(config: ViTConfig) -> str:
    if config.num_classes == 0:
        return "no head (torchvision's classifier always has one; keep the head, or put one in)"
    if config.img_size[0] != config.img_size[1] or config.patch_size[0] != config.patch_size[1]:
        return f"img_size={config.img_size} with patch_size={config.patch_size} (it holds squares)"
    return ""


def _reference(folder: Path, config: ViTConfig) -> Callable[[Tensor], Tensor]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=config.img_size[0],
        patch_size=config.patch_size[0],
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.embed_dim,
        mlp_dim=int(config.embed_dim * config.mlp_ratio),
        num_classes=config.num_classes,
    )
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True), strict=True)
    forward: Callable[[Tensor], Tensor] = model.float().eval()
    return forward


TORCHVISION = Format(
    name="torchvision",
    library="torchvision",
    present=("class_token", "encoder.pos_embedding", "encoder_layer_0.ln_1.weight"),
    aliases={
        # As an ONNX graph names it, whose nodes know no more than the module.
        f"{_LAYER}.self_attention.weight": f"{_LAYER}.self_attention.in_proj_weight",
        # Version 1 of its state dict, which the released files have.
        f"{_LAYER}.mlp.linear_1.{{kind}}": f"{_LAYER}.mlp.0.{{kind}}",
        f"{_LAYER}.mlp.linear_2.{{kind}}": f"{_LAYER}.mlp.3.{{kind}}",
    },
    rules=(
        Rule("class_token", "cls_token"),
        Rule("encoder.pos_embedding", "pos_embed"),
        Rule("conv_proj.{kind}", "patch_embed.proj.{kind}"),
        Rule(f"{_LAYER}.ln_1.{{kind}}", "blocks.{i}.norm1.{kind}"),
        Rule(f"{_LAYER}.self_attention.in_proj_{{kind}}", "blocks.{i}.attn.qkv.{kind}"),
        Rule(f"{_LAYER}.self_attention.out_proj.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
        Rule(f"{_LAYER}.ln_2.{{kind}}", "blocks.{i}.norm2.{kind}"),
        Rule(f"{_LAYER}.mlp.0.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
        Rule(f"{_LAYER}.mlp.3.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
        Rule("encoder.ln.{kind}", "norm.{kind}"),
        Rule("heads.head.{kind}", "head.{kind}"),
    ),
    refuse={
        "heads.pre_logits.{rest}": "representation_size puts a tanh layer before the head, which no network here has; "
        "remove heads.pre_logits and heads.head, and train a new head",
        "conv_proj.conv_bn_relu_{rest}": "a stem of convolutions instead of patches; no plain ViT can hold it",
    },
    defaults={"norm_eps": 1e-6, "act_layer": "gelu"},
    check=_check,
    file="model.pth",
    reference=_reference,
    pos_embed="torchvision",
)

FORMATS = (TORCHVISION,)
