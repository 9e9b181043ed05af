"""Rotary positions: queries and keys are turned, pair of channels by pair, by angles that grow with a patch's place.

The product of a query turned by a and a key turned by b depends on a - b alone, so attention sees where patches stand
to each other. Angles are made anew in each forward pass: a fraction of one block's work, and no buffer that a change of
dtype or device could spoil. Here: angles for a patch grid, and the turning itself. Not here: attention.

Sources: RoPE (arXiv 2104.09864), EVA-02 (2303.11331), rotary positions for ViTs (2403.13298), DINOv3 (2508.10104);
numbers as in timm 1.0, which computes coordinates and frequencies in float32 whatever the dtype of the network.
Legend: B batch, S B or 1, L blocks or 1, P patches, gh gw patch grid, N tokens incl. prefix, nh hd heads and their
width.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_finetune.models.noise import PATCH_SITE, SITES_PER_BLOCK, uniform
from vit_finetune.models.rope_config import RopeViTConfig


def rotate(x: Tensor, turns: Tensor, *, half: bool) -> Tensor:
    """Turn each pair of channels by its angle, in the precision of `turns`.

    Args:
        x: queries or keys by head [B, nh, N, hd].
        turns: cosines and sines [2, S, nh or 1, N, hd/2].
        half: pair channel i with i + hd/2 instead of 2i with 2i + 1.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    pairs = "(two c)" if half else "(c two)"
    first, second = rearrange(x, f"b nh n {pairs} -> two b nh n c", two=2)
    cosine, sine = turns
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine])
    return rearrange(turned, f"two b nh n c -> b nh n {pairs}").to(x.dtype)


def with_prefix(turns: Tensor, num_prefix_tokens: int) -> Tensor:
    """Put tokens without a place, which are not turned, in front of the patches.

    Args:
        turns: [L, 2, S, nh or 1, P, hd/2].
        num_prefix_tokens: how many.

    Returns:
        [L, 2, S, nh or 1, N, hd/2].
    """
    still = torch.zeros_like(turns[..., :1, :]).expand(*turns.shape[:-2], num_prefix_tokens, -1)
    still = torch.stack([still[:, 0] + 1, still[:, 1]], dim=1)
    return torch.cat([still, turns], dim=-2)


def select_patches(turns: Tensor, kept: Tensor) -> Tensor:
    """Return the turns of the patches that each sample keeps.

    Args:
        turns: [L, 2, S, nh or 1, P, hd/2].
        kept: int64 [B, fewer], numbers of patches.

    Returns:
        [L, 2, B, nh or 1, fewer, hd/2].
    """
    turns = turns.expand(-1, -1, kept.shape[0], -1, -1, -1)
    index = rearrange(kept, "b p -> 1 1 b 1 p 1")
    return turns.gather(4, index.expand(*turns.shape[:4], -1, turns.shape[5]))


class Rope(nn.Module):
    """Angles of patches: what the three kinds share.

    Args:
        config: the network.
    """

    def __init__(self, config: RopeViTConfig) -> None:
        super().__init__()
        self.head_dim = config.embed_dim // config.num_heads
        self.temperature, self.offset = config.rope_temperature, config.rope_grid_offset
        self.columns_first = config.rope_grid_indexing == "xy"
        self.reference = config.ref_feat_shape
        self.rescale = config.rope_rescale_coords
        self.site = PATCH_SITE + 1 + SITES_PER_BLOCK * config.depth  # the first that no block uses

    def axis(self, count: int, *, reference: int | None, device: torch.device) -> Tensor:
        """Return the coordinates [count] of patches along one axis, float32."""
        places = torch.arange(count, device=device).float() + self.offset
        return places if reference is None else places / count * reference

    def angles(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the angles [L, S, nh or 1, P, hd/2] of coordinates [S, P, 2] in radians.

        Args:
            places: coordinates, float32.
            dtype: of the network, or float32 where that is coarser.
        """
        del dtype  # angles that count patches are float32 in timm
        exponents = torch.arange(self.head_dim // 4, device=places.device).float() / (self.head_dim // 4)
        return _two_axes(places, 1.0 / self.temperature**exponents)

    def forward(self, grid: tuple[int, int], like: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return cosines and sines of the angles of a grid's patches.

        Args:
            grid: (gh, gw).
            like: a tensor on the device and in the dtype of the network.
            sample_seeds: int64 [B]; they decide the scaling in training, None leaves it to torch's generator, which
                then scales all samples alike, as timm does.

        Returns:
            [L, 2, S, nh or 1, P, hd/2], float32 at least.
        """
        reference = self.reference or (None, None)
        rows, columns = (
            self.axis(count, reference=size, device=like.device) for count, size in zip(grid, reference, strict=True)
        )
        pair = [rows[:, None].expand(grid), columns[None, :].expand(grid)]
        places = torch.stack(pair[::-1] if self.columns_first else pair, dim=-1).reshape(1, -1, 2)
        if self.training and self.rescale is not None:
            places = places * self._scales(like.device, sample_seeds)[:, None, None]
        angles = self.angles(places, torch.promote_types(like.dtype, torch.float32))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def _scales(self, device: torch.device, sample_seeds: Tensor | None) -> Tensor:
        """Return factors [S] in [1/rescale, rescale]."""
        draw = torch.rand(1, device=device) if sample_seeds is None else uniform(sample_seeds, self.site)
        return torch.exp((2 * draw - 1) * math.log(self.rescale or 1.0))


class CenteredRope(Rope):
    """Angles of a patch's place between -1 and 1, the same picture whatever the number of patches (DINOv3)."""

    def axis(self, count: int, *, reference: int | None, device: torch.device) -> Tensor:
        """Return the coordinates [count] of patches along one axis, float32."""
        del reference
        return 2.0 * ((torch.arange(count, device=device).float() + 0.5 + self.offset) / count) - 1.0

    def angles(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the angles [1, S, 1, P, hd/2] of coordinates [S, P, 2] in radians."""
        exponents = 2.0 * torch.arange(self.head_dim // 4, device=places.device).float() / (self.head_dim // 2)
        periods = (self.temperature**exponents).to(dtype)
        return rearrange(2 * math.pi * places.to(dtype)[..., None] / periods, "s p two c -> 1 s 1 p (two c)")


class MixedRope(Rope):
    """Angles from learned frequencies for each block and head, so that directions may be oblique (ROPE-ViT)."""

    def __init__(self, config: RopeViTConfig) -> None:
        super().__init__(config)
        self.freqs = nn.Parameter(torch.zeros(2, config.depth, config.num_heads, self.head_dim // 2))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw one direction for each block and head; half of the channels stand at a right angle to it."""
        _, depth, heads, _ = self.freqs.shape
        sizes = 1.0 / self.temperature ** (torch.arange(0, self.head_dim, 4, device=self.freqs.device) / self.head_dim)
        direction = torch.rand(depth, heads, 1, device=self.freqs.device) * 2 * math.pi
        both = torch.cat(
            [direction.expand(-1, -1, len(sizes)), (direction + math.pi / 2).expand(-1, -1, len(sizes))], -1
        )
        self.freqs.copy_(torch.stack([both.cos(), both.sin()]) * sizes.repeat(2))

    def angles(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the angles [L, S, nh, P, hd/2] of coordinates [S, P, 2] in radians."""
        del dtype
        first, second = rearrange(places, "s p two -> two 1 s 1 p 1")
        along, across = rearrange(self.freqs.float(), "two l nh c -> two l 1 nh 1 c")
        angles: Tensor = first * along + second * across
        return angles


def _two_axes(places: Tensor, frequencies: Tensor) -> Tensor:
    """Return the products [1, S, 1, P, 2F] of coordinates [S, P, 2] and frequencies [F]."""
    return rearrange(places[..., None] * frequencies, "s p two c -> 1 s 1 p (two c)")


ROPES: dict[str, type[Rope]] = {"cat": Rope, "dinov3": CenteredRope, "mixed": MixedRope}
