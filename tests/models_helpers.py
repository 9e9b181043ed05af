"""What the tests of `models/` share: timm's list of plain ViTs, and small pairs of timm's network and ours."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from vit_finetune.models import VisionTransformer, create_model, variant_config

PLAIN_MODULES = ("vision_transformer", "deit")
DIFF_NAMES = {"vit_dlittle_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"}
# One name per kind of block, MLP, attention, norm, pooling and prefix.
DIVERSE = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch32_clip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_so150m_patch16_reg4_gap_256",
    "beit3_base_patch16_224",
    "aimv2_large_patch14_224",
    "vit_base_patch16_rpn_224",
    "vit_small_patch16_18x2_224",
    "vit_base_patch16_xp_224",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "test_vit3",
    "eva_large_patch14_196",
)


def plain_names() -> list[str]:
    """Return every plain ViT that the installed timm registers."""
    return sorted(name for module in PLAIN_MODULES for name in timm.list_models(module=module))


def small_fields(name: str, **overrides: Any) -> dict[str, Any]:
    """Return overrides, understood by timm and by us, that make a variant small but leave its heads and options."""
    config = variant_config(name)
    patch = config.patch_size[0]
    small = {"depth": 2, "embed_dim": 8 * config.num_heads, "img_size": (3 * patch, 4 * patch), "num_classes": 5}
    return small | overrides


def randomize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give every parameter values that matter (LayerScale of 1e-5 would hide a wrong branch)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            centre = 1.0 if parameter.ndim == 1 else 0.0
            scale = 0.1 if parameter.ndim == 1 else 0.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(centre + scale * noise)
    return model


def small_pair(name: str, **overrides: Any) -> tuple[VisionTransformer, nn.Module]:
    """Return our network and timm's, small, in float64 and eval mode, with the same random weights."""
    fields = small_fields(name, **overrides)
    theirs = randomize(timm.create_model(name, **fields)).double().eval()
    ours = create_model(name, **fields, weight_init="skip").double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def small(name: str, **overrides: Any) -> VisionTransformer:
    """Return our network, small, with random weights that matter, in float64 and eval mode."""
    model = create_model(name, **small_fields(name, **overrides))
    randomize(model)
    return model.double().eval()


def images(config: Any, *, batch: int = 2, size: tuple[int, int] | None = None, seed: int = 1) -> Tensor:
    """Return random float64 images that a config takes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size or config.img_size
    return torch.randn(batch, config.in_chans, height, width, generator=generator, dtype=torch.float64)
