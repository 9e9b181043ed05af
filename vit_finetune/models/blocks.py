"""The transformer blocks: five ways to put attention and an MLP together.

Sources: ViT (arXiv 2010.11929), Swin V2 for post-norm in the residual branch (2111.09883), ViT-22B for attention and
MLP in parallel (2302.05442), Three Things about ViTs (2203.09795); layout and numerics as in timm 1.0.
Legend: B batch, N tokens, D width, M hidden width, nh heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vit_finetune.models.attention import ATTENTIONS, Attention, DiffHeads, Heads
from vit_finetune.models.backbone import BlockBase
from vit_finetune.models.layer_scale import factors_of
from vit_finetune.models.layers import ACTIVATIONS
from vit_finetune.models.parts import build_drop_path, build_layer_scale, build_mlp, build_norm, hidden_width
from vit_finetune.models.recompute import recomputed

if TYPE_CHECKING:
    from vit_finetune.models.merging import TokenMerging
    from vit_finetune.models.vit_config import ViTConfig


class Block(BlockBase):
    """The usual pre-norm block: attention, then MLP, each normalised before and added to its input.

    Args:
        config: the network.
        index: the block's number, from 0.
    """

    can_shorten = True

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()
        self.norm1 = build_norm(config, config.embed_dim)
        self.attn = ATTENTIONS[config.attn_layer](config, index)
        self.ls1 = build_layer_scale(config)
        self.drop_path1 = build_drop_path(config, index, place=0)
        self.norm2 = build_norm(config, config.embed_dim)
        self.mlp = build_mlp(config)
        self.ls2 = build_layer_scale(config)
        self.drop_path2 = build_drop_path(config, index, place=1)

    def forward(
        self,
        x: Tensor,
        sample_seeds: Tensor | None = None,
        num_tokens: int | None = None,
        merging: TokenMerging | None = None,
    ) -> Tensor:
        """Return tokens [B, N, D], or the first `num_tokens` of them, which look at all; fewer with `merging`."""
        attended = self.attn(recomputed(self.norm1, x), num_tokens, merging, gamma=factors_of(self.ls1))
        x = x[:, :num_tokens] + self.drop_path1(attended, sample_seeds)
        if merging is not None and num_tokens is None:  # only prefix tokens are left otherwise
            x = merging.merge(x)
        hidden = self.mlp(recomputed(self.norm2, x), gamma=factors_of(self.ls2))
        out: Tensor = x + self.drop_path2(hidden, sample_seeds)
        return out

    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """Return one map."""
        return [self.attn.attention_map(self.norm1(x))]


class ResPostBlock(BlockBase):
    """Normalises what a branch gives rather than what it takes; `init_values` is where those norms start."""

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()
        self.init_value = config.init_values
        self.attn = ATTENTIONS[config.attn_layer](config, index)
        self.norm1 = build_norm(config, config.embed_dim)
        self.drop_path1 = build_drop_path(config, index, place=0)
        self.mlp = build_mlp(config)
        self.norm2 = build_norm(config, config.embed_dim)
        self.drop_path2 = build_drop_path(config, index, place=1)

    def init_weights(self) -> None:
        """Let the norms start small where the config says so: they stand in for LayerScale."""
        if self.init_value is not None:
            for norm in (self.norm1, self.norm2):
                nn.init.constant_(norm.get_parameter("weight"), self.init_value)

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D]."""
        x = x + self.drop_path1(self.norm1(self.attn(x)), sample_seeds)
        out: Tensor = x + self.drop_path2(self.norm2(self.mlp(x)), sample_seeds)
        return out

    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """Return one map."""
        return [self.attn.attention_map(x)]


class ParallelScalingBlock(Heads, BlockBase):
    """Attention and MLP side by side on the same normalised input, with one input projection for both (ViT-22B).

    Rows of `in_proj` are [MLP | queries | keys | values]. Without `qkv_bias` only the MLP's part has a bias,
    `mlp_bias`.
    """

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__(config, index)
        dim, hidden = config.embed_dim, hidden_width(config)
        self.in_norm = build_norm(config, dim)
        self.in_proj = nn.Linear(dim, hidden + 3 * dim, bias=config.qkv_bias)
        self.in_split = [hidden, dim, dim, dim]
        self.mlp_bias = None if config.qkv_bias else nn.Parameter(torch.zeros(hidden))
        self.mlp_act = ACTIVATIONS[config.act_layer]()
        self.mlp_drop = nn.Dropout(config.proj_drop_rate)
        self._build_output(dim, hidden, bias=config.proj_bias)
        self.ls = build_layer_scale(config)
        self.drop_path = build_drop_path(config, index, place=0)

    def _build_output(self, dim: int, hidden: int, *, bias: bool) -> None:
        """Make the output projections."""
        self.attn_out_proj = nn.Linear(dim, dim, bias=bias)
        self.mlp_out_proj = nn.Linear(hidden, dim, bias=bias)

    def _merge(self, attended: Tensor, hidden: Tensor) -> Tensor:
        """Return both branches' sum [B, N, D] of attended values [B, N, D] and hidden units [B, N, M]."""
        merged: Tensor = self.attn_out_proj(attended) + self.mlp_out_proj(hidden)
        return merged

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D]."""
        hidden, q, k, v = self.in_proj(recomputed(self.in_norm, x)).split(self.in_split, dim=-1)
        if self.mlp_bias is not None:
            hidden = recomputed(torch.add, hidden, self.mlp_bias)
        merged = self._merge(self.mix(q, k, v), self.mlp_drop(recomputed(self.mlp_act, hidden)))
        out: Tensor = x + self.drop_path(self.ls(merged), sample_seeds)
        return out

    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """Return one map."""
        _, q, k, _ = self.in_proj(self.in_norm(x)).split(self.in_split, dim=-1)
        return [self.map(q, k)]


class DiffParallelScalingBlock(DiffHeads, ParallelScalingBlock):
    """`ParallelScalingBlock` with differential heads and one output projection for both branches, attention first."""

    def _build_output(self, dim: int, hidden: int, *, bias: bool) -> None:
        self.out_proj = nn.Linear(dim + hidden, dim, bias=bias)

    def _merge(self, attended: Tensor, hidden: Tensor) -> Tensor:
        merged: Tensor = self.out_proj(torch.cat([attended, hidden], dim=-1))
        return merged


class Branch(nn.Module):
    """Norm, attention or MLP, LayerScale, DropPath: one of the parallel branches of `ParallelThingsBlock`.

    Args:
        config: the network.
        index: the block's number, from 0.
        kind: "attn" or "mlp": the name that the layer has in the state dict.
        place: the branch's number in the block.
    """

    def __init__(self, config: ViTConfig, index: int, *, kind: str, place: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = build_norm(config, config.embed_dim)
        self.add_module(kind, ATTENTIONS[config.attn_layer](config, index) if kind == "attn" else build_mlp(config))
        self.ls = build_layer_scale(config)
        self.drop_path = build_drop_path(config, index, place=place)

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return what the branch adds, [B, N, D]."""
        layer = getattr(self, self.kind)
        branch = layer(recomputed(self.norm, x), gamma=factors_of(self.ls))
        out: Tensor = self.drop_path(branch, sample_seeds)
        return out


class ParallelThingsBlock(BlockBase):
    """Two attentions side by side, then two MLPs side by side."""

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()
        self.attns = nn.ModuleList([Branch(config, index, kind="attn", place=place) for place in (0, 1)])
        self.ffns = nn.ModuleList([Branch(config, index, kind="mlp", place=place) for place in (2, 3)])

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D]."""
        for branches in (self.attns, self.ffns):
            x = x + sum(branch(x, sample_seeds) for branch in branches)
        return x

    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """Return one map for each of the two attentions."""
        maps = []
        for branch in self.attns:
            layer = branch.get_submodule("attn")
            assert isinstance(layer, Attention)
            maps.append(layer.attention_map(branch.get_submodule("norm")(x)))
        return maps


BLOCKS: dict[str, type[BlockBase]] = {
    "block": Block,
    "res_post": ResPostBlock,
    "parallel_scaling": ParallelScalingBlock,
    "parallel_things": ParallelThingsBlock,
    "diff_parallel_scaling": DiffParallelScalingBlock,
}
