"""The Vision Transformer: images to tokens to logits.

One network for every plain ViT; what differs between them is chosen part by part from a `ViTConfig`. Not here: rotary
(`rope_vit.py`) and relative (`rel_pos_vit.py`) positions, which are other networks. State-dict names, shapes and
numbers are timm's.

Reading order: `layers.py`, `backbone.py`, `attention.py`, `blocks.py`, here, `variants.py`.
Sources: ViT (arXiv 2010.11929), DeiT's distillation token (2012.12877), registers (2309.16588); layout of timm 1.0.
Legend: B batch, C channels, H W image, gh gw patch grid, N tokens incl. prefix, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vit_finetune.models.backbone import Backbone, Blocks
from vit_finetune.models.blocks import BLOCKS
from vit_finetune.models.init import SCHEMES, init_weights
from vit_finetune.models.layers import resample_grid
from vit_finetune.models.noise import PatchDropout
from vit_finetune.models.parts import build_attention_pool, build_norm, build_patch_embed
from vit_finetune.models.vit_config import ViTConfig

__all__ = ["ViTConfig", "VisionTransformer"]


class VisionTransformer(Backbone):
    """A plain Vision Transformer with random weights; `from_pretrained` and `load_pretrained` bring real ones.

    Args:
        config: the network. With `weight_init="skip"` the layers keep what their construction gave them.
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        dim, prefix = config.embed_dim, config.num_prefix_tokens
        self.patch_embed = build_patch_embed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, dim)) if config.reg_tokens else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distilled else None
        self.num_positioned_prefix = 0 if config.no_embed_class else prefix
        positions = config.num_tokens - prefix + self.num_positioned_prefix
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, num_prefix_tokens=prefix)
        self.norm_pre = build_norm(config, dim, wanted=config.pre_norm)

        self.blocks = Blocks(BLOCKS[config.block_fn](config, index) for index in range(config.depth))

        self.norm = build_norm(config, dim, wanted=config.final_norm and not config.norm_after_pool)
        self.attn_pool = build_attention_pool(config)
        self.fc_norm = build_norm(config, dim, wanted=config.final_norm and config.norm_after_pool)
        self.head_drop = nn.Dropout(config.drop_rate)
        has_head = config.num_classes > 0
        self.head = nn.Linear(dim, config.num_classes) if has_head else nn.Identity()
        self.head_dist = nn.Linear(dim, config.num_classes) if has_head and config.distilled else None
        if config.weight_init in SCHEMES:
            init_weights(self, scheme=config.weight_init)

    def embed(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> Tensor:
        """Return what the first block sees: patches and prefix tokens with their positions.

        Args:
            x: images [B, C, H, W].
            sample_seeds: int64 [B], see `forward`.

        Returns:
            Tokens [B, N, D] in the order class, registers, distillation, patches (row by row); fewer patches while
            training with `patch_drop_rate`.
        """
        grid = self.patch_embed.grid_of(x)
        self.check_seeds(x, sample_seeds)
        tokens = self.patch_embed(x)
        positions = resample_grid(
            self.pos_embed, old=self.config.grid_size, new=grid, num_prefix_tokens=self.num_positioned_prefix
        )
        learned = (self.cls_token, self.reg_token, self.dist_token)
        prefix = [token.expand(x.shape[0], -1, -1) for token in learned if token is not None]
        if self.config.no_embed_class:
            tokens = torch.cat([*prefix, tokens + positions], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1) + positions
        out: Tensor = self.norm_pre(self.patch_drop(self.pos_drop(tokens), sample_seeds))
        return out

    def start(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> tuple[Tensor, Sequence[tuple[Tensor, ...]]]:
        """Return what the first block sees; tokens carry their positions, so blocks are given none."""
        return self.embed(x, sample_seeds=sample_seeds), [()] * len(self.blocks)

    @property
    def num_pooled_tokens(self) -> int | None:
        """How many tokens the head looks at: the class token, and that of distillation; None for all."""
        if self.config.distilled:
            return 2
        return 1 if self.config.global_pool == "token" else None

    def pool(self, x: Tensor) -> Tensor:
        """Return one vector [B, D] per image of tokens [B, N, D]; all of them where `global_pool` is ""."""
        if self.config.global_pool == "":
            return x
        if self.config.distilled:
            return (x[:, 0] + x[:, 1]) / 2
        if self.config.global_pool == "token":
            return x[:, 0]
        pooled = x if self.config.pool_include_prefix else x[:, self.num_prefix_tokens :]
        return pooled.mean(dim=1) if self.attn_pool is None else cast("Tensor", self.attn_pool(pooled))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of tokens.

        A distilled model averages its two heads, in training too; with one head (see `replace_head`) it averages the
        two tokens.

        Args:
            x: tokens [B, N, D] from `forward_features`.
            pre_logits: stop before the head.

        Returns:
            Logits [B, K], or features [B, D] with `pre_logits` or without a head; [B, N, ...] without pooling.
        """
        if self.head_dist is not None and not pre_logits:
            logits: Tensor = (self.head(self.head_drop(x[:, 0])) + self.head_dist(self.head_drop(x[:, 1]))) / 2
            return logits
        return super().forward_head(x, pre_logits)
