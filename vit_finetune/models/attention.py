"""Self-attention, softmax or differential, and its maps for looking at.

`Heads` and `DiffHeads` hold what happens between the projections; `Attention` adds the projections of a usual block,
the parallel blocks in `blocks.py` add their own. The maps are recomputed from queries and keys, so that `forward` has
no branch for them.

Sources: ViT (arXiv 2010.11929), Differential Transformer (2410.05258); layout and numerics as in timm 1.0.
Legend: B batch, N tokens, D width, nh hd heads and head width, A = nh*hd, which is D but for `attn_head_dim`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_finetune.models.attending import attend, softmax_map
from vit_finetune.models.layer_scale import project
from vit_finetune.models.parts import build_norm
from vit_finetune.models.recompute import recomputed

if TYPE_CHECKING:
    from vit_finetune.models.backbone import Backbone
    from vit_finetune.models.merging import TokenMerging
    from vit_finetune.models.vit_config import ViTConfig


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Return features head by head [B, nh, N, hd] of features [B, N, nh*hd]."""
    return rearrange(x, "b n (nh hd) -> b nh n hd", nh=num_heads)


def merge_heads(x: Tensor) -> Tensor:
    """Return features [B, N, nh*hd] of features head by head [B, nh, N, hd]."""
    return rearrange(x, "b nh n hd -> b n (nh hd)")


class Heads(nn.Module):
    """Softmax attention between given queries, keys and values, head by head.

    Args:
        config: the network.
        index: the block's number, from 0.
    """

    queries_per_head = 1

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()
        del index  # only differential heads start differently at each depth
        self.num_heads, self.attn_drop_rate = config.num_heads, config.attn_drop_rate
        self.head_dim = config.attn_dim // config.num_heads // self.queries_per_head
        self.q_norm, self.k_norm = (
            build_norm(config, self.head_dim) if config.qk_norm else nn.Identity() for _ in range(2)
        )

    def split(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised queries and keys by head, each [queries_per_head, B, nh, N, hd], of [B, N, A]."""
        pattern, sizes = "b n (nh s hd) -> s b nh n hd", {"nh": self.num_heads, "s": self.queries_per_head}
        q, k = rearrange(q, pattern, **sizes), rearrange(k, pattern, **sizes)
        return recomputed(self.q_norm, q), recomputed(self.k_norm, k)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, merging: TokenMerging | None = None) -> Tensor:
        """Return attended values [B, N, A] of queries, keys and values [B, N, A]; `merging` is told the keys."""
        (q,), (k,) = self.split(q, k)
        bias = None if merging is None else merging.look(k)
        attended = attend(q, k, split_heads(v, self.num_heads), dropout=self.dropout, bias=bias)
        return recomputed(merge_heads, attended)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the attention map [B, nh, N, N] of queries and keys [B, N, A]."""
        (q,), (k,) = self.split(q, k)
        return softmax_map(q, k)

    @property
    def dropout(self) -> float:
        """The share of attention weights to drop now."""
        return self.attn_drop_rate if self.training else 0.0


class DiffHeads(Heads):
    """Differential attention: each head subtracts a second softmax map from its first, to cancel noise."""

    queries_per_head = 2

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__(config, index)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.randn(self.head_dim, dtype=torch.float32) * 0.1)  # float32 whatever the default: timm's
            for _ in range(4)
        )
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * index)
        self.sub_norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5)

    def _lambda(self) -> Tensor:
        """Return the weight of the second map, a scalar; in float32, as timm computes it."""
        first: Tensor = (self.lambda_q1 * self.lambda_k1).sum().float().exp()
        second: Tensor = (self.lambda_q2 * self.lambda_k2).sum().float().exp()
        out: Tensor = first - second + self.lambda_init
        return out

    def mix(self, q: Tensor, k: Tensor, v: Tensor, merging: TokenMerging | None = None) -> Tensor:
        """Return attended values [B, N, D] of queries, keys and values [B, N, D]; `merging` is for other heads."""
        assert merging is None  # `check_mergeable` refuses
        (q1, q2), (k1, k2) = self.split(q, k)
        v = split_heads(v, self.num_heads)
        first, second = attend(q1, k1, v, dropout=self.dropout), attend(q2, k2, v, dropout=self.dropout)
        out: Tensor = self.sub_norm(first - self._lambda().type_as(q1) * second) * (1 - self.lambda_init)
        return merge_heads(out)

    def map(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the difference of the two maps, [B, nh, N, N]; rows may hold negative weights."""
        (q1, q2), (k1, k2) = self.split(q, k)
        difference: Tensor = softmax_map(q1, k1) - self._lambda().type_as(q1) * softmax_map(q2, k2)
        return difference


class Attention(Heads):
    """Self-attention with its projections; rows of `qkv` are queries, keys, values, each head by head."""

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__(config, index)
        dim, inner = config.embed_dim, config.attn_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=config.qkv_bias)
        self.norm = build_norm(config, inner) if config.scale_attn_norm else nn.Identity()
        self.proj = nn.Linear(inner, dim, bias=config.proj_bias)
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def forward(
        self,
        x: Tensor,
        num_tokens: int | None = None,
        merging: TokenMerging | None = None,
        *,
        gamma: Tensor | None = None,
    ) -> Tensor:
        """Return tokens [B, N, D], or the first `num_tokens` of them, which look at all.

        Args:
            x: tokens [B, N, D].
            num_tokens: how many; None for all.
            merging: is told the keys; None for none.
            gamma: the factors [D] of LayerScale, times which they are; None for none.
        """
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = recomputed(self.norm, self.mix(q[:, :num_tokens], k, v, merging))
        out: Tensor = self.proj_drop(project(self.proj, mixed, gamma))
        return out

    def attention_map(self, x: Tensor) -> Tensor:
        """Return the map [B, nh, N, N] that `forward` uses on tokens [B, N, D]."""
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        return self.map(q, k)


class DiffAttention(DiffHeads, Attention):
    """`Attention` between differential heads."""


ATTENTIONS: dict[str, type[Attention]] = {"attention": Attention, "diff": DiffAttention}


def attention_maps(model: Backbone, x: Tensor) -> list[Tensor]:
    """Return how much each token looks at each other token, layer by layer.

    The model runs as it is, so call `model.eval()` first where it has dropout; wrap the call in `torch.no_grad()` where
    no gradient is wanted, since the maps of all layers stay in memory.

    Args:
        model: the network, not compiled.
        x: images [B, C, H, W].

    Returns:
        One map [B, nh, N, N] per attention layer, in order; prefix tokens (class, registers) come first in both N. Rows
        sum to 1, except with differential attention. Blocks of parallel attentions give one map for each.
    """
    tokens, positions = model.start(x)
    maps: list[Tensor] = []
    for block, own in zip(model.blocks, positions, strict=True):
        maps += block.attention_maps(tokens, *own)
        tokens = block(tokens, None, *own)
    return maps
