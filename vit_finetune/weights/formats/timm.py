"""timm's plain ViT layout, which is ours: every name stays.

Source: timm 1.0 `models/vision_transformer.py` and `models/deit.py`. The absent parts tell it from the layouts that
share its patch embedding but not its meaning (DeiT-III, MAE and DINOv2 as released, BEiT, EVA, DINOv3).
"""

from __future__ import annotations

from vit_finetune.weights.rules import Format

TIMM = Format(
    name="timm",
    present=("patch_embed.proj.weight",),
    absent=(
        ".gamma_1",
        ".decoder_embed",
        ".decoder_pos_embed",
        ".mask_token",
        ".register_tokens",
        ".storage_tokens",
        ".mlp.w12",
        ".q_bias",
        ".relative_position_bias_table",
        ".patch_embed.backbone.",
        ".rope.",
        ".trunk.",
    ),
)
