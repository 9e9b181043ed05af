"""Tiny networks of many families, with weights that no permutation or missing tensor survives."""

from __future__ import annotations

from typing import Any

import torch

from vit_finetune import PreprocessSpec, VisionTransformer, create_model

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 2}

# name, overrides: a family each
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch14_dinov2", {"img_size": (56, 84)}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": (56, 56)}),
    ("vit_base_patch16_siglip_224", {"img_size": (64, 64)}),
    ("vit_base_patch16_siglip_gap_224", {"img_size": (64, 64)}),
    ("vit_base_patch32_clip_224", {"img_size": (96, 96)}),
    ("vit_base_patch16_224", {"img_size": (64, 64), "global_pool": "avg", "reg_tokens": 3, "init_values": 0.1}),
    ("vit_tiny_patch16_224", {"img_size": (64, 48), "patch_size": (8, 16), "in_chans": 1, "act_layer": "silu"}),
    ("vit_tiny_patch16_224", {"img_size": (64, 64), "dynamic_img_size": True, "drop_path_rate": 0.2, "qk_norm": True}),
    ("vit_tiny_patch16_224", {"img_size": (64, 64), "norm_layer": "rmsnorm"}),
    ("deit_tiny_distilled_patch16_224", {"img_size": (64, 64)}),
]


def tiny_model(name: str, *, num_classes: int = 3, **overrides: Any) -> VisionTransformer:
    """Build a tiny network of a registered family whose every parameter is random and far from its initial value."""
    model = create_model(name, num_classes=num_classes, **{**TINY, **overrides})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def spec_for(model: VisionTransformer) -> PreprocessSpec:
    """Return a preprocessing that fits a model and differs from every default."""
    channels, (height, width) = model.config.in_chans, model.config.img_size
    return PreprocessSpec(
        input_size=(channels, height, width),
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
        interpolation="bilinear",
        crop_pct=0.9,
        source="a test",
        assumed=(),
    )


def images_for(model: VisionTransformer, count: int = 2) -> torch.Tensor:
    """Return normalised random images [count, C, H, W] of the model's size."""
    size = (count, model.config.in_chans, *model.config.img_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(1))
