"""What BEiT handed down to EVA and its kin: blocks with their LayerScale on themselves, and how weights start.

Sources: BEiT (arXiv 2106.08254), EVA-02 (2303.11331); layout and numerics as in timm 1.0.
Legend: B batch, N tokens, D width, nh heads.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from vit_finetune.models.backbone import Backbone, BlockBase
from vit_finetune.models.layers import AttentionPool, Mlp
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.parts import build_drop_path, build_norm
from vit_finetune.models.recompute import recomputed

_TRUNCATED = partial(nn.init.trunc_normal_, std=0.02)
_HEAD_SCALE = 0.001
_TOKENS = ("pos_embed", "cls_token", "reg_token")


class PlacedAttention(nn.Module):
    """What a block knows of an attention that is told positions."""

    proj: nn.Linear

    def forward(self, x: Tensor, positions: Tensor | None = None, *, gamma: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D] of tokens [B, N, D].

        Args:
            x: tokens [B, N, D].
            positions: the family says what; None for none.
            gamma: the factors [D] of LayerScale, times which the tokens are; None for none.
        """
        raise NotImplementedError

    def attention_map(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the map [B, nh, N, N] that `forward` uses on tokens [B, N, D]."""
        raise NotImplementedError


class ScaledBlock(BlockBase):
    """The pre-norm block with the factors of LayerScale directly on it, as gamma_1 and gamma_2.

    Args:
        config: the network.
        index: the block's number, from 0.
        attn: its attention.
        mlp: its MLP.
        scale_mlp: LayerScale on the MLP too.
    """

    def __init__(
        self, config: NetworkConfig, index: int, *, attn: PlacedAttention, mlp: Mlp, scale_mlp: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = build_norm(config, config.embed_dim)
        self.attn = attn
        self.gamma_1 = _build_gamma(config, wanted=True)
        self.drop_path1 = build_drop_path(config, index, place=0)
        self.norm2 = build_norm(config, config.embed_dim)
        self.mlp = mlp
        self.gamma_2 = _build_gamma(config, wanted=scale_mlp)
        self.drop_path2 = build_drop_path(config, index, place=1)

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D]."""
        x = x + self.drop_path1(self.attn(recomputed(self.norm1, x), positions, gamma=self.gamma_1), sample_seeds)
        out: Tensor = x + self.drop_path2(self.mlp(recomputed(self.norm2, x), gamma=self.gamma_2), sample_seeds)
        return out

    def attention_maps(self, x: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """Return one map."""
        return [self.attn.attention_map(self.norm1(x), positions)]


class PostNormBlock(BlockBase):
    """Normalises what a branch gives rather than what it takes.

    Args:
        config: the network.
        index: the block's number, from 0.
        attn: its attention.
        mlp: its MLP.
    """

    def __init__(self, config: NetworkConfig, index: int, *, attn: PlacedAttention, mlp: Mlp) -> None:
        super().__init__()
        self.attn = attn
        self.norm1 = build_norm(config, config.embed_dim)
        self.drop_path1 = build_drop_path(config, index, place=0)
        self.mlp = mlp
        self.norm2 = build_norm(config, config.embed_dim)
        self.drop_path2 = build_drop_path(config, index, place=1)

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D]."""
        x = x + self.drop_path1(self.norm1(self.attn(x, positions)), sample_seeds)
        out: Tensor = x + self.drop_path2(self.norm2(self.mlp(x)), sample_seeds)
        return out

    def attention_maps(self, x: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """Return one map."""
        return [self.attn.attention_map(x, positions)]


@torch.no_grad()
def init_scaled_weights(model: Backbone) -> None:
    """Draw a network's weights from torch's global generator, in place, as BEiT and EVA start.

    Linear layers and tokens come from a normal of std 0.02, cut at 2; the layers that write to the residual stream are
    smaller the deeper they sit, the head a thousandth. The patch convolution keeps torch's default.

    Args:
        model: its blocks are of this module.
    """
    for name, parameter in model.named_parameters(recurse=False):
        if name in _TOKENS:
            _TRUNCATED(parameter)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _TRUNCATED(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for index, block in enumerate(model.blocks):
        for layer in ("attn.proj", "mlp.fc2"):
            block.get_submodule(layer).get_parameter("weight").div_(math.sqrt(2.0 * (index + 1)))
    if isinstance(model.head, nn.Linear):
        model.head.weight.mul_(_HEAD_SCALE)
    for module in model.modules():
        if isinstance(module, AttentionPool):
            module.init_weights()


def _build_gamma(config: NetworkConfig, *, wanted: bool) -> nn.Parameter | None:
    """Build the factors of LayerScale [D], or None where the config has none."""
    if config.init_values is None or not wanted:
        return None
    return nn.Parameter(torch.full((config.embed_dim,), config.init_values))
