"""timm's layout, which is ours: every name stays, in plain ViTs and in those with rotary or relative positions.

Source: timm 1.0 `models/vision_transformer.py`, `deit.py`, `eva.py` and `beit.py`. The absent parts tell it from the
layouts that share its patch embedding but not its meaning (DeiT-III, MAE and DINOv2 as released, EVA-02, DINOv3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.rel_pos_vit import RelPosViTConfig
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format

# What only the names of relatives have: MAE, DeiT-III, DINOv2 and DINOv3 as released, BEiT, EVA, hybrids.
KIN = (
    *(".decoder_embed", ".decoder_pos_embed", ".mask_token", ".gamma_1", ".register_tokens", ".storage_tokens"),
    *(".mlp.w12", ".blocks.0.0.", ".rope_embed.", ".rope.", ".q_bias", ".relative_position_bias_table"),
    ".patch_embed.backbone.",
)
# Those of them that timm has in other families here; what Swin has, or timm's own readers take away or rename.
_OF_TIMM = (".gamma_1", ".rope.", ".q_bias", ".relative_position_bias_table")
_RENAMED = (".layers.0.", ".rope.freqs_", ".relative_position_index", ".mlp.w1.", ".mlp.ffn_ln", ".inner_attn_ln")


def _reference(folder: Path, config: NetworkConfig) -> Callable[[Tensor], Tensor]:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()
    forward: Callable[[Tensor], Tensor] = model if config.num_classes else model.forward_features
    return forward


def _check(config: NetworkConfig) -> str:
    if not isinstance(config, ViTConfig):
        return ""
    problems = []
    if config.attn_head_dim is not None:
        problems.append(f"attn_head_dim={config.attn_head_dim} (timm's plain ViT divides its width among the heads)")
    if config.patch_norm_in:
        problems.append("patch_norm_in=True (no plain ViT of timm's has a norm before the patch convolution)")
    return "; ".join(problems)


TIMM = Format(
    name="timm",
    library="timm",
    present=("patch_embed.proj.weight",),
    families=(ViTConfig, RopeViTConfig, RelPosViTConfig),
    absent=(
        *(mark for mark in KIN if mark not in _OF_TIMM),
        *_RENAMED,
        *(".backbone.patch_embed.", ".head.mlp.", ".head.last_layer.", ".trunk.", ".proj_q."),
    ),
    yields_to=("facebook_deit3",),  # whose names ROPE-ViT with learned positions has too
    check=_check,
    reference=_reference,
)

FORMATS = (TIMM,)
