"""timm's plain ViT layout, which is ours: every name stays.

Source: timm 1.0 `models/vision_transformer.py` and `models/deit.py`. The absent parts tell it from the layouts that
share its patch embedding but not its meaning (DeiT-III, MAE and DINOv2 as released, BEiT, EVA, DINOv3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format

# Every option; the values are as many as `ViTConfig` allows. `_check` names those that only our network has.
_OPTIONS = (
    *("global_pool", "qkv_bias", "qk_norm", "proj_bias", "scale_attn_norm", "scale_mlp_norm", "init_values"),
    *("class_token", "distilled", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm"),
    *(
        "pool_include_prefix",
        "norm_layer",
        "norm_eps",
        "embed_norm",
        "act_layer",
        "mlp_layer",
        "attn_layer",
        "block_fn",
    ),
    *("attn_head_dim", "patch_norm_in"),
)

# What only the names of relatives have: MAE, DeiT-III, DINOv2 and DINOv3 as released, BEiT, EVA, hybrids.
KIN = (
    *(".decoder_embed", ".decoder_pos_embed", ".mask_token", ".gamma_1", ".register_tokens", ".storage_tokens"),
    *(".mlp.w12", ".blocks.0.0.", ".rope_embed.", ".rope.", ".q_bias", ".relative_position_bias_table"),
    ".patch_embed.backbone.",
)


def _reference(folder: Path, config: ViTConfig) -> Callable[[Tensor], Tensor]:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()
    forward: Callable[[Tensor], Tensor] = model if config.num_classes else model.forward_features
    return forward


def _check(config: ViTConfig) -> str:
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
    absent=(*KIN, ".backbone.patch_embed.", ".head.mlp.", ".head.last_layer.", ".trunk.", ".proj_q."),
    holds=dict.fromkeys(_OPTIONS, ()),
    check=_check,
    reference=_reference,
)

FORMATS = (TIMM,)
