"""ViTs with rotary positions: EVA, EVA-02, ROPE-ViT, Perception Encoder, DINOv3, Sapiens2.

One network for timm's EVA family; what differs inside it is chosen part by part from a `RopeViTConfig`. The plain ViT
is another network (`vit.py`); both share their layers. State-dict names, shapes and numbers are timm's.

Reading order: `layers.py`, `backbone.py`, `rope.py`, `scaled_blocks.py`, here, `rope_variant_table.py`.
Sources: EVA (arXiv 2211.07636), EVA-02 (2303.11331), Perception Encoder (2504.13181), rotary positions for ViTs
(2403.13298), DINOv3 (2508.10104), grouped-query attention (2305.13245); layout of timm 1.0.
Legend: B batch, C channels, H W image, N tokens incl. prefix, D width, nh hd heads and head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from vit_finetune.models.attending import attend, softmax_map
from vit_finetune.models.attention import merge_heads, split_heads
from vit_finetune.models.backbone import Backbone, BlockBase, Blocks
from vit_finetune.models.layer_scale import project
from vit_finetune.models.layers import (
    ACTIVATIONS,
    AttentionPool,
    Mlp,
    PatchEmbed,
    SwiGLU,
    SwiGLUPacked,
    resample_grid,
)
from vit_finetune.models.noise import PatchDropout
from vit_finetune.models.parts import build_norm, norm_factory
from vit_finetune.models.recompute import recomputed
from vit_finetune.models.rope import ROPES, MixedRope, Rope, rotate, select_patches, with_prefix
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.models.scaled_blocks import PlacedAttention, PostNormBlock, ScaledBlock, init_scaled_weights

__all__ = ["RopeViT", "RopeViTConfig"]


class RopeAttention(PlacedAttention):
    """Self-attention whose queries and keys are turned by their places.

    Rows of `qkv` are queries, keys, values, each head by head. With attn_type "eva" keys have no bias: it would add the
    same to all scores of a query, which a softmax does not see.

    Args:
        config: the network.
        index: the block's number, from 0.
    """

    def __init__(self, config: RopeViTConfig, index: int) -> None:
        super().__init__()
        dim, bias = config.embed_dim, config.qkv_bias
        key_bias = bias and config.attn_type == "rope"
        self.num_heads, self.num_kv_heads = config.num_heads, config.kv_heads(index)
        self.head_dim = dim // config.num_heads
        self.attn_drop_rate, self.rotate_half = config.attn_drop_rate, config.rope_rotate_half
        self.q_bias = self.v_bias = None
        if config.qkv_fused:
            self.qkv: nn.Linear | None = nn.Linear(dim, 3 * dim, bias=key_bias)
            if bias and not key_bias:
                self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        else:
            self.qkv = None
            self.q_proj = nn.Linear(dim, dim, bias=bias)
            self.k_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=key_bias)
            self.v_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=bias)
        self.q_norm = build_norm(config, self.head_dim, wanted=config.qk_norm)
        self.k_norm = build_norm(config, self.head_dim, wanted=config.qk_norm)
        self.norm = build_norm(config, dim, wanted=config.scale_attn_inner)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, N, D], keys and values [B, N, kv heads * hd] of tokens [B, N, D]."""
        if self.qkv is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = recomputed(torch.add, q, self.q_bias), recomputed(torch.add, v, self.v_bias)
        return q, k, v

    def _heads(self, x: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, nh, N, hd] as attention takes them."""
        q, k, v = self._project(x)
        q = recomputed(partial(self._place, self.q_norm, turns), split_heads(q, self.num_heads))
        k = recomputed(partial(self._place, self.k_norm, turns), split_heads(k, self.num_kv_heads))
        v = split_heads(v, self.num_kv_heads)
        if self.num_kv_heads < self.num_heads:
            shared = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        return q, k, v

    def _place(self, norm: nn.Module, turns: Tensor | None, x: Tensor) -> Tensor:
        """Return queries or keys [B, nh, N, hd] normalised and turned."""
        normed: Tensor = norm(x)
        return normed if turns is None else rotate(normed, turns, half=self.rotate_half)

    def forward(self, x: Tensor, positions: Tensor | None = None, *, gamma: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D].

        Args:
            x: tokens [B, N, D].
            positions: cosines and sines [2, S, nh or 1, N, hd/2] from `rope.py`; None where nothing is turned.
            gamma: the factors [D] of LayerScale, times which the tokens are; None for none.
        """
        q, k, v = self._heads(x, positions)
        attended = attend(q, k, v, dropout=self.attn_drop_rate if self.training else 0.0)
        mixed = recomputed(self.norm, recomputed(merge_heads, attended))
        out: Tensor = self.proj_drop(project(self.proj, mixed, gamma))
        return out

    def attention_map(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the map [B, nh, N, N] that `forward` uses on tokens [B, N, D]."""
        q, k, _ = self._heads(x, positions)
        return softmax_map(q, k)


def build_rope_mlp(config: RopeViTConfig) -> Mlp:
    """Build the MLP of a block; a gated one keeps its two input layers apart where a norm or alignment asks for it."""
    dim, hidden, drop = config.embed_dim, config.hidden_width, config.proj_drop_rate
    norm = norm_factory(config) if config.scale_mlp else None
    if not config.swiglu_mlp:
        return Mlp(dim, hidden, act=ACTIVATIONS["gelu"], norm=norm, drop=drop)
    if config.scale_mlp or config.swiglu_align_to:
        return SwiGLU(dim, hidden, act=ACTIVATIONS["silu"], norm=norm, drop=drop)
    return SwiGLUPacked(dim, 2 * hidden, act=ACTIVATIONS["silu"], drop=drop)


def build_rope_block(config: RopeViTConfig, index: int) -> BlockBase:
    """Build block `index`, from 0."""
    attn, mlp = RopeAttention(config, index), build_rope_mlp(config)
    if config.use_post_norm:
        return PostNormBlock(config, index, attn=attn, mlp=mlp)
    return ScaledBlock(config, index, attn=attn, mlp=mlp, scale_mlp=not config.attn_only_layer_scale)


class RopeViT(Backbone):
    """A Vision Transformer of timm's EVA family, with random weights.

    Args:
        config: the network. With `weight_init="skip"` the layers keep what their construction gave them.
    """

    config: RopeViTConfig

    def __init__(self, config: RopeViTConfig) -> None:
        super().__init__(config)
        dim, prefix = config.embed_dim, config.num_prefix_tokens
        self.patch_embed = PatchEmbed(
            img_size=config.img_size,
            patch_size=config.patch_size,
            in_chans=config.in_chans,
            embed_dim=dim,
            bias=not config.use_pre_transformer_norm,
            norm=None,
            dynamic=config.dynamic_img_size,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_reg_tokens, dim)) if config.num_reg_tokens else None
        self.num_positioned_prefix = 0 if config.no_embed_class else prefix
        positions = config.num_tokens - prefix + self.num_positioned_prefix
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim)) if config.use_abs_pos_emb else None
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, num_prefix_tokens=prefix)
        self.rope: Rope | None = ROPES[config.rope_type](config) if config.use_rot_pos_emb else None
        self.norm_pre = build_norm(config, dim, wanted=config.use_pre_transformer_norm)

        self.blocks = Blocks(build_rope_block(config, index) for index in range(config.depth))

        self.norm = build_norm(config, dim, wanted=config.norm_before_pool)
        self.attn_pool = _build_pool(config) if config.global_pool == "map" else None
        self.fc_norm = build_norm(config, dim, wanted=config.norm_after_pool)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        if config.weight_init != "skip":
            init_scaled_weights(self)
            if isinstance(self.rope, MixedRope):
                self.rope.init_weights()

    def start(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> tuple[Tensor, Sequence[tuple[Tensor, ...]]]:
        """Return what the first block sees, and for each block the turns of its tokens.

        Args:
            x: images [B, C, H, W].
            sample_seeds: int64 [B], see `forward`.

        Returns:
            Tokens [B, N, D] in the order class, registers, patches (row by row); for each block cosines and sines
            [2, S, nh or 1, N, hd/2], or nothing without rotary positions.
        """
        grid = self.patch_embed.grid_of(x)
        self.check_seeds(x, sample_seeds)
        tokens = self.pos_drop(self._with_learned_positions(self.patch_embed(x), grid))
        kept = self.patch_drop.choose(tokens, sample_seeds)
        tokens = self.norm_pre(tokens if kept is None else self.patch_drop.keep(tokens, kept))
        if self.rope is None:
            return tokens, [()] * len(self.blocks)
        turns = self.rope(grid, tokens, sample_seeds)
        turns = with_prefix(turns if kept is None else select_patches(turns, kept), self.num_prefix_tokens)
        return tokens, [(own,) for own in turns.expand(len(self.blocks), *turns.shape[1:])]

    def _with_learned_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens [B, N, D] of patches [B, gh*gw, D]: prefix tokens in front, learned positions added."""
        learned = (self.cls_token, self.reg_token)
        prefix = [token.expand(patches.shape[0], -1, -1) for token in learned if token is not None]
        if self.pos_embed is None:
            return torch.cat([*prefix, patches], dim=1)
        positions = resample_grid(
            self.pos_embed, old=self.config.grid_size, new=grid, num_prefix_tokens=self.num_positioned_prefix
        )
        if self.config.no_embed_class:
            return torch.cat([*prefix, patches + positions], dim=1)
        return torch.cat([*prefix, patches], dim=1) + positions

    def pool(self, x: Tensor) -> Tensor:
        """Return one vector [B, D] per image of tokens [B, N, D]; all of them where `global_pool` is ""."""
        if self.attn_pool is not None:
            return cast("Tensor", self.attn_pool(x))
        if self.config.global_pool == "token":
            return x[:, 0]
        return x[:, self.num_prefix_tokens :].mean(dim=1) if self.config.global_pool == "avg" else x

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that no optimizer should decay, beside the one-dimensional ones."""
        return {"pos_embed", "cls_token", "reg_token", "rope.freqs"}


def _build_pool(config: RopeViTConfig) -> AttentionPool:
    """Build attention pooling, which reads all tokens, prefix included."""
    ratio = config.mlp_ratio if config.attn_pool_mlp_ratio is None else config.attn_pool_mlp_ratio
    return AttentionPool(
        config.embed_dim,
        num_heads=config.attn_pool_num_heads or config.num_heads,
        hidden=int(config.embed_dim * ratio),
        norm=norm_factory(config),
        act=ACTIVATIONS["gelu"],
    )
