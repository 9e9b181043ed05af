"""A network in two halves: what comes before the first layer that trains, and the rest.

A boundary says where they meet: k in [1, depth] after k blocks, depth + 1 before the head (after pooling), 0 nowhere.
What the first half gives of a picture does not change while only the second trains, so it may be computed once.

Legend: B batch, C channels, H W image, N tokens incl. prefix tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vit_finetune.models.backbone import Backbone


def boundary_of(model: Backbone, trained: Collection[str]) -> int:
    """Return the last boundary that lies before every parameter that trains.

    Args:
        model: the network.
        trained: names of the parameters that train, at least one.
    """
    depth, first = len(model.blocks), min(model.parameter_depth(name) for name in trained)
    if first <= depth:
        return max(0, first - 1)
    is_head = all(name.startswith("head.") for name in trained)
    return depth + 1 if is_head and model.head_dist is None else depth


def prefix_tensors(model: Backbone, boundary: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of everything that the first half depends on, and perhaps of a little more."""
    for name, tensor in model.state_dict().items():
        if boundary > len(model.blocks):
            is_before = not name.startswith("head.")
        else:
            part, _, rest = name.partition(".")
            is_before = part not in {"norm", "fc_norm", "attn_pool", "head", "head_dist"}
            is_before &= part != "blocks" or int(rest.partition(".")[0]) < boundary
        if is_before:
            yield name, tensor


def forward_prefix(model: Backbone, images: Tensor, boundary: int) -> Tensor:
    """Return what the first half gives of images.

    Args:
        model: the network; its mode decides about dropout, as everywhere.
        images: [B, C, H, W], normalised as the weights expect.
        boundary: above 0.

    Returns:
        Tokens [B, N, D] after `boundary` blocks, or, before the head, features [B, D].
    """
    tokens, positions = model.start(images)
    for block, own in list(zip(model.blocks, positions, strict=True))[:boundary]:
        tokens = block(tokens, None, *own)
    if boundary <= len(model.blocks):
        return tokens
    pooled: Tensor = model.fc_norm(model.pool(model.norm(tokens)))
    return pooled


def forward_from(model: Backbone, x: Tensor, boundary: int, *, sample_seeds: Tensor | None = None) -> Tensor:
    """Return logits [B, K] of what `forward_prefix` gave.

    Args:
        model: the network.
        x: tokens [B, N, D], or features [B, D] before the head.
        boundary: at which they were taken.
        sample_seeds: int64 [B]; they decide DropPath in the blocks of this half, as in the whole.
    """
    if boundary > len(model.blocks):
        return cast("Tensor", model.head(model.head_drop(x)))
    model.check_seeds(x, sample_seeds)
    config, weight = model.config, model.patch_embed.proj.weight
    blank = torch.zeros(1, config.in_chans, *config.img_size, device=x.device, dtype=weight.dtype)
    _, positions = model.start(blank)  # of which no pixel is a part
    return model.finish(x, positions, first=boundary, sample_seeds=sample_seeds)


class SecondHalf(nn.Module):
    """The second half as a network of its own, with the same weights.

    Args:
        model: the whole.
        boundary: above 0.
    """

    def __init__(self, model: Backbone, boundary: int) -> None:
        super().__init__()
        self.model, self.boundary = model, boundary
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of what `forward_prefix` gave."""
        return forward_from(self.model, x, self.boundary)
