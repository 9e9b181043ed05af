"""Token merging (ToMe): after each block's attention the most similar patches become one, so later blocks see fewer.

For inference with a network that was trained without it: nothing is learned, and the network stays as it is. A token
that stands for several counts as several in every attention after that. Not here: dropping patches in training
(noise.py).

Source: Bolya et al. 2022 (arXiv 2210.09461) and its code, facebookresearch/ToMe. What differs: any number of prefix
tokens stays out of it, patches that were not merged keep their order in every network, and the last block of a network
with a class token makes that token alone.
Legend: B batch, C channels, H W image, N tokens incl. prefix, r merged, D width, nh hd heads and head width, K classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.models.backbone import Backbone
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.vit import VisionTransformer
from vit_finetune.models.vit_config import ViTConfig


def match_tokens(keys: Tensor, num_merged: int, *, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Return which tokens go into which, by bipartite soft matching.

    The patches at even places of the sequence each find the most similar of those at odd places; of these pairs the
    most similar ones are taken.

    Args:
        keys: what is compared, by its cosine, [B, N, any width].
        num_merged: r, at most half of the patches.
        num_prefix_tokens: in front; in no pair.

    Returns:
        int64 [B, r]: the tokens that go, in no order, and those that take them in.
    """
    even = num_prefix_tokens + num_prefix_tokens % 2
    odd = num_prefix_tokens + 1 - num_prefix_tokens % 2
    with torch.autocast(keys.device.type, enabled=False):  # coarse cosines would be equal, and the first would win
        unit = functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)
        best, partner = (unit[:, even::2] @ unit[:, odd::2].transpose(1, 2)).max(dim=2)
    chosen = best.argsort(dim=1, descending=True, stable=True)[:, :num_merged]
    return even + 2 * chosen, odd + 2 * partner.gather(1, chosen)


class TokenMerging:
    """Which patches of a batch have become one, on its way through the blocks.

    Args:
        num_merged: r after each attention, at most half of the patches that are left.
        num_prefix_tokens: in front; never merged.

    Attributes:
        sizes: how many tokens each stands for, [B, N]; None before the first were merged.
        places: where each of the first tokens is now, int64 [B, first N]; None before the first were merged.
    """

    def __init__(self, num_merged: int, *, num_prefix_tokens: int) -> None:
        self.num_merged, self.num_prefix_tokens = num_merged, num_prefix_tokens
        self.sizes: Tensor | None = None
        self.places: Tensor | None = None
        self._keys: Tensor | None = None

    def look(self, keys: Tensor) -> Tensor | None:
        """Note the keys of a block's attention; return what its scores gain, so that a token counts as what it holds.

        Args:
            keys: [B, nh, N, hd], normalised where the attention normalises them.

        Returns:
            [B, 1, 1, N], the logarithms of the sizes; None where all are 1.
        """
        self._keys = keys.mean(dim=1)
        return None if self.sizes is None else self.sizes.log().to(keys.dtype)[:, None, None, :]

    def merge(self, x: Tensor) -> Tensor:
        """Return tokens [B, fewer, D], the most similar of [B, N, D] averaged, each with the weight of what it holds.

        Prefix tokens come first, then the patches at even places that stay, then those at odd places.
        """
        (batch, count, _), prefix = x.shape, self.num_prefix_tokens
        num_merged = min(self.num_merged, (count - prefix) // 2)
        if num_merged == 0 or self._keys is None:
            return x
        gone, into = match_tokens(self._keys, num_merged, num_prefix_tokens=prefix)
        numbers = torch.arange(count, device=x.device)
        patches = numbers[prefix:]
        order = torch.cat([numbers[:prefix], patches[patches % 2 == 0], patches[patches % 2 == 1]])
        is_gone = torch.zeros(batch, count, dtype=torch.uint8, device=x.device).scatter(1, gone, 1)
        kept = order[is_gone[:, order].argsort(dim=1, stable=True)[:, : count - num_merged]]
        place = torch.zeros_like(is_gone, dtype=torch.int64).scatter(
            1, kept, numbers[: count - num_merged].expand_as(kept)
        )
        place = place.scatter(1, gone, place.gather(1, into))
        sizes = self.sizes
        if sizes is None:  # float32 at least: bfloat16 cannot count beyond 256
            sizes = torch.ones(batch, count, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        self.places = place if self.places is None else place.gather(1, self.places)
        self.sizes = _rows(sizes[:, :, None], kept, gone, place)[:, :, 0]
        return (_rows(x * sizes[:, :, None], kept, gone, place) / self.sizes[:, :, None]).to(x.dtype)

    def spread(self, x: Tensor) -> Tensor:
        """Return as many tokens as there were at first, [B, first N, D]: each that was merged is what it went into."""
        if self.places is None:
            return x
        return x.gather(1, self.places[:, :, None].expand(-1, -1, x.shape[2]))


def _rows(x: Tensor, kept: Tensor, gone: Tensor, place: Tensor) -> Tensor:
    """Return the kept rows of x [B, N, D], those that are gone added where they went."""
    batch, count, width = x.shape
    flat, first = x.reshape(batch * count, width), torch.arange(batch, device=x.device)[:, None]
    out = flat[(kept + first * count).flatten()]
    target = place.gather(1, gone) + first * kept.shape[1]
    out.index_add_(0, target.flatten(), flat[(gone + first * count).flatten()])
    return out.reshape(batch, -1, width)


def check_mergeable(config: NetworkConfig) -> None:
    """Refuse a network whose tokens cannot be merged.

    Args:
        config: of the network.

    Raises:
        RequestError: it is no plain ViT of the usual blocks.
    """
    if not isinstance(config, ViTConfig):
        raise RequestError(f"token merging is for plain ViTs, and this is a {config.KIND}; set merge_tokens to 0")
    if config.block_fn != "block" or config.attn_layer != "attention":
        raise RequestError(
            f"token merging is for the usual blocks, and this network has block_fn {config.block_fn} with attn_layer "
            f"{config.attn_layer}; set merge_tokens to 0"
        )


class MergedTokens(nn.Module):
    """A plain ViT that merges tokens on its way: the same weights, less work, other logits.

    Args:
        model: the network, which stays as it is.
        merge_tokens: patches merged in each block r, above 0; never more than half of those that are left.

    Raises:
        RequestError: the network is of another family, or the number is not above 0.
    """

    def __init__(self, model: Backbone, merge_tokens: int) -> None:
        super().__init__()
        check_mergeable(model.config)
        if not isinstance(model, VisionTransformer):
            raise RequestError("token merging is for networks that pool their last tokens; set merge_tokens to 0")
        if merge_tokens < 1:
            raise RequestError(f"merge_tokens is {merge_tokens}; give a number of tokens above 0, such as 8")
        self.model, self.merge_tokens = model, merge_tokens
        self.training = model.training

    def _tokens(self, x: Tensor, *, num_tokens: int | None) -> Tensor:
        """Return the normalised tokens of images, all of them [B, N, D] or the first `num_tokens`."""
        model, merging = self.model, TokenMerging(self.merge_tokens, num_prefix_tokens=self.model.num_prefix_tokens)
        x, _ = model.start(x)
        last = len(model.blocks) - 1
        for index, block in enumerate(model.blocks):
            x = block(x, None, num_tokens if index == last else None, merging)
        normed = cast("Tensor", model.norm(x))
        return normed if num_tokens else merging.spread(normed)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens [B, N, D] of images [B, C, H, W]; those that became one are equal."""
        return self._tokens(x, num_tokens=None)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return what the network's own `forward_head` does."""
        return self.model.forward_head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of images [B, C, H, W]; patches are averaged with the weight of what they hold."""
        return self.model.forward_head(self._tokens(x, num_tokens=self.model.num_pooled_tokens))
