"""From a ViTConfig to its small parts: one function per choice, each a look-up in a literal dict.

Reading order: `layers.py` (what the parts are), here (which ones a config asks for), `attention.py`, `blocks.py`,
`vit.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from vit_finetune.models.layer_scale import LayerScale
from vit_finetune.models.layers import (
    ACTIVATIONS,
    MLPS,
    NORMS,
    AttentionPool,
    Mlp,
    ModuleFactory,
    PatchEmbed,
)
from vit_finetune.models.noise import PATCH_SITE, SITES_PER_BLOCK, DropPath

if TYPE_CHECKING:
    from vit_finetune.models.network_config import NetworkConfig
    from vit_finetune.models.vit_config import ViTConfig


def norm_factory(config: NetworkConfig) -> ModuleFactory:
    """Return what makes the config's norm from a width; one kind and one epsilon serve the whole network."""
    return partial(NORMS[config.norm_layer], eps=config.norm_eps)


def build_norm(config: NetworkConfig, dim: int, *, wanted: bool = True) -> nn.Module:
    """Build the config's norm over `dim` channels, or the identity where it is not wanted."""
    return norm_factory(config)(dim) if wanted else nn.Identity()


def hidden_width(config: ViTConfig) -> int:
    """Return the hidden width M of an MLP; truncated, as timm does."""
    return int(config.embed_dim * config.mlp_ratio)


def build_patch_embed(config: ViTConfig) -> PatchEmbed:
    """Build the patch embedding; a norm right behind the embedding makes its bias idle, so `pre_norm` removes it."""
    return PatchEmbed(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=config.embed_dim,
        bias=not config.pre_norm,
        norm=norm_factory(config) if config.embed_norm else None,
        dynamic=config.dynamic_img_size,
        norm_in=norm_factory(config) if config.patch_norm_in else None,
    )


def build_mlp(config: ViTConfig) -> Mlp:
    """Build the MLP of a block."""
    return MLPS[config.mlp_layer](
        config.embed_dim,
        hidden_width(config),
        act=ACTIVATIONS[config.act_layer],
        bias=config.proj_bias,
        norm=norm_factory(config) if config.scale_mlp_norm else None,
        drop=config.proj_drop_rate,
    )


def build_layer_scale(config: ViTConfig) -> nn.Module:
    """Build LayerScale, or the identity where the config has none."""
    if config.init_values is None:
        return nn.Identity()
    return LayerScale(config.embed_dim, init_value=config.init_values)


def build_drop_path(config: NetworkConfig, index: int, *, place: int) -> DropPath:
    """Build DropPath for a branch; its rate rises linearly over the blocks, from 0 to `drop_path_rate`.

    Args:
        config: the network.
        index: the block's number, from 0.
        place: the branch's number in the block, below SITES_PER_BLOCK.
    """
    rate = config.drop_path_rate * index / max(config.depth - 1, 1)
    return DropPath(rate, site=PATCH_SITE + 1 + SITES_PER_BLOCK * index + place)


def build_attention_pool(config: ViTConfig) -> AttentionPool | None:
    """Build attention pooling, or None where the config pools otherwise."""
    if config.global_pool != "map":
        return None
    return AttentionPool(
        config.embed_dim,
        num_heads=config.num_heads,
        hidden=hidden_width(config),
        norm=norm_factory(config),
        act=ACTIVATIONS[config.act_layer],
    )
