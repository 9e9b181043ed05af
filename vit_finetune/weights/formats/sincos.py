"""Positions that are a formula and in no file: the sin-cos table of SimpleViT and of big_vision's `posemb="sincos2d"`.

Sources: vit-pytorch `simple_vit.py`, big_vision `models/vit.py` (`posemb_sincos_2d`), which are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rewrites import Tensors

_TEMPERATURE = 10000


def sincos_table(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the positions, [1, gh*gw, D]: sin x, cos x, sin y, cos y, each a quarter of the width.

    Args:
        grid: (gh, gw).
        dim: width D, a multiple of 4.
    """
    omega = 1 / _TEMPERATURE ** (torch.arange(dim // 4) / (dim // 4 - 1))  # in this order: the package rounds so
    y, x = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)[None]


def with_positions(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:
    """Put the table in, where a file has no positions.

    Args:
        tensors: under timm's names.
        fields: what is known of the network; `img_size` among them.
    """
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is None or "pos_embed" in tensors:
        return dict(tensors)
    size = ViTConfig.from_mapping({"img_size": fields["img_size"], "patch_size": kernel.shape[2:]}).grid_size
    table = combine(
        lambda weight: sincos_table(size, weight.shape[0]).to(weight), [kernel], "sin-cos table of its positions"
    )
    return {"pos_embed": table, **tensors}
