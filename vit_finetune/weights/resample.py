"""Fitting the three tensors whose shape depends on the picture: positions, patch kernel, input channels.

Grids and sizes are always (height, width), never the square root of a token count. Each function returns its input
unchanged where nothing has to change and works in float32 whatever the dtype, as timm does ("bilinear" in float64, as
scipy does). This module knows tensors only: which tensor of which file needs what is decided in `adapt.py`.

Sources: timm `resample_abs_pos_embed`, `resample_patch_embed`, `adapt_input_conv`; FlexiViT (arXiv 2212.08013,
section 3.4) for the pseudo-inverse; google-research/vision_transformer `checkpoint.py` for "bilinear".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from einops import rearrange
from torch import Tensor

from vit_finetune.common.errors import RequestError

POS_EMBED_METHODS = ("bicubic", "bilinear", "hf", "facebook", "torchvision")


def resample_pos_embed(
    table: Tensor,
    old_grid: tuple[int, int],
    *,
    new_grid: tuple[int, int],
    num_prefix: int,
    method: str = "bicubic",
) -> Tensor:
    """Resample a position table to another patch grid; the rows of the prefix tokens stay as they are.

    Args:
        table: [1, num_prefix + old_h * old_w, D].
        old_grid: (rows, columns) of patches that the table was trained on.
        new_grid: (rows, columns) of patches wanted.
        num_prefix: leading rows that belong to class, register or distillation tokens.
        method: whose numbers to give. "bicubic" with antialiasing is timm's; "bilinear" with aligned corners is scipy's
            zoom of order 1, as the ViT paper's code; "hf", "facebook" (DINO, DINOv2) and "torchvision" are bicubic
            without antialiasing, with a plain grid, with a grid scaled by (new + 0.1) / old, and with aligned corners.

    Returns:
        [1, num_prefix + new_h * new_w, D] in the table's dtype.

    Raises:
        RequestError: the table doesn't have the rows that the old grid asks for, or the method is unknown.
    """
    if method not in POS_EMBED_METHODS:
        raise RequestError(f"pos_embed is {method!r}; allowed: {', '.join(POS_EMBED_METHODS)}")
    if table.ndim != 3 or table.shape[:2] != (1, num_prefix + math.prod(old_grid)):
        raise RequestError(
            f"a position table of shape {list(table.shape)} does not hold {num_prefix} prefix rows and a grid of "
            f"{old_grid[0]}x{old_grid[1]} patches"
        )
    if old_grid == new_grid:
        return table
    prefix, grid = table[:, :num_prefix], table[:, num_prefix:]
    image = _interpolated(rearrange(grid, "1 (h w) d -> 1 d h w", h=old_grid[0]), new_grid, method)
    return torch.cat([prefix, rearrange(image, "1 d h w -> 1 (h w) d").to(table.dtype)], dim=1)


def _interpolated(image: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """Resize [1, D, h, w] as one of the libraries does."""
    if method == "bilinear":
        return F.interpolate(image.double(), size=size, mode="bilinear", align_corners=True)
    image = image.float()
    if method == "bicubic":
        return F.interpolate(image, size=size, mode="bicubic", antialias=True)
    if method == "torchvision":
        return F.interpolate(image, size=size, mode="bicubic", align_corners=True)
    if method == "hf":
        return F.interpolate(image, size=size, mode="bicubic", align_corners=False)
    # The offset keeps the floored size from falling one short, and is part of the numbers that the weights know.
    scale = tuple((new + 0.1) / old for new, old in zip(size, image.shape[-2:], strict=True))
    return F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)


def resample_patch_embed(weight: Tensor, new_size: tuple[int, int]) -> Tensor:
    """Resize a patch kernel so that resized patches give the same tokens, as nearly as the size allows.

    Enlarging keeps the response exactly (up to rounding); reducing is a least-squares fit.

    Args:
        weight: [D, C, ph, pw].
        new_size: (height, width) of the new patch in pixels.

    Returns:
        [D, C, new_size[0], new_size[1]] in the weight's dtype.
    """
    old_size = (int(weight.shape[-2]), int(weight.shape[-1]))
    if old_size == new_size:
        return weight
    # Row i of `resize` is the i-th single-pixel picture after resizing: [ph * pw, new_h * new_w].
    basis = torch.eye(math.prod(old_size), device=weight.device).reshape(-1, 1, *old_size)
    resize = F.interpolate(basis, size=new_size, mode="bicubic", antialias=True, align_corners=False).flatten(1)
    flat = rearrange(weight.float(), "d c h w -> d c (h w)")
    resized: Tensor = rearrange(flat @ torch.linalg.pinv(resize.T), "d c (h w) -> d c h w", h=new_size[0])
    return resized.to(weight.dtype)


def adapt_in_chans(weight: Tensor, in_chans: int) -> Tensor:
    """Fit a patch kernel to another number of input channels, keeping the size of its response.

    Args:
        weight: [D, C, ph, pw]; C must be 3 unless it is wanted as it is or summed to one.
        in_chans: channels wanted. One sums the kernel's channels (a grey picture repeated over them gives the same
            tokens); more repeat them in turn and divide by how often each pixel counts.

    Returns:
        [D, in_chans, ph, pw] in the weight's dtype.

    Raises:
        RequestError: the kernel has neither three channels nor the number wanted.
    """
    channels = int(weight.shape[1])
    if in_chans == channels:
        return weight
    if in_chans == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    if channels != 3:
        raise RequestError(
            f"the patch kernel takes {channels} channels and the model {in_chans}; only kernels with 3 channels can be "
            f"fitted to several others: build the model with in_chans={channels}"
        )
    repeated = weight.float().repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans]
    return (repeated * (3 / in_chans)).to(weight.dtype)
