"""The Vision Transformer: images to tokens to logits.

One network for every plain ViT; what differs between them is chosen part by part from a `ViTConfig`. Not here: rotary
and relative positions, which are other networks. State-dict names, shapes and numbers are timm's.

Reading order: `layers.py`, `attention.py`, `blocks.py`, here, `variants.py`.
Sources: ViT (arXiv 2010.11929), DeiT's distillation token (2012.12877), registers (2309.16588); layout of timm 1.0.
Legend: B batch, C channels, H W image, gh gw patch grid, N tokens incl. prefix, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_finetune.common.errors import RequestError
from vit_finetune.models.blocks import BLOCKS, BlockBase
from vit_finetune.models.init import SCHEMES, init_weights
from vit_finetune.models.layers import resample_grid
from vit_finetune.models.noise import PatchDropout
from vit_finetune.models.parts import build_attention_pool, build_norm, build_patch_embed
from vit_finetune.models.vit_config import ViTConfig

__all__ = ["Blocks", "ViTConfig", "VisionTransformer"]

# Where a parameter sits, by the first part of its name (`blocks.i` is i + 1): counted from the front, or, if negative,
# from the end.
_DEPTHS = {
    **dict.fromkeys(("cls_token", "reg_token", "dist_token", "pos_embed", "patch_embed", "norm_pre"), 0),
    "norm": -2,  # with the last block, as timm groups it
    **dict.fromkeys(("attn_pool", "fc_norm", "head", "head_dist"), -1),
}


class Blocks(nn.ModuleList):
    """A list of blocks that says so to type checkers."""

    def __iter__(self) -> Iterator[BlockBase]:
        """Iterate from the first block to the last."""
        return cast("Iterator[BlockBase]", super().__iter__())


class VisionTransformer(nn.Module):
    """A plain Vision Transformer with random weights; `from_pretrained` and `load_pretrained` bring real ones.

    Attributes of note: `config`, `name` (the architecture it was created as, or None), `embed_dim` and `num_features`
    (D), `num_classes` (K), `num_prefix_tokens` (class, register and distillation tokens before the patches).

    Args:
        config: the network. With `weight_init="skip"` the layers keep what their construction gave them.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, prefix = config.embed_dim, config.num_prefix_tokens
        self.config, self.grad_checkpointing = config, False
        self.name: str | None = None
        self.embed_dim = self.num_features = dim
        self.num_classes, self.num_prefix_tokens = config.num_classes, prefix

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
        self.head: nn.Module = nn.Linear(dim, config.num_classes) if has_head else nn.Identity()
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
        if sample_seeds is not None and (sample_seeds.shape != x.shape[:1] or sample_seeds.dtype != torch.int64):
            raise RequestError(
                f"sample_seeds are {sample_seeds.dtype} of shape {tuple(sample_seeds.shape)}; "
                f"give one int64 per image, {x.shape[0]} of them"
            )
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

    def _run(self, block: BlockBase, x: Tensor, sample_seeds: Tensor | None) -> Tensor:
        """Apply a block, keeping only its input for the backward pass where checkpointing is on."""
        if self.grad_checkpointing:
            return cast("Tensor", checkpoint(block, x, sample_seeds, use_reentrant=False))
        return cast("Tensor", block(x, sample_seeds))

    def forward_features(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> Tensor:
        """Return all tokens after the last block and the final norm (where that norm comes before pooling).

        Args:
            x: images [B, C, H, W].
            sample_seeds: int64 [B], see `forward`.

        Returns:
            Tokens [B, N, D], prefix tokens first.
        """
        x = self.embed(x, sample_seeds=sample_seeds)
        for block in self.blocks:
            x = self._run(block, x, sample_seeds)
        out: Tensor = self.norm(x)
        return out

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
        features: Tensor = self.head_drop(self.fc_norm(self.pool(x)))
        return features if pre_logits else cast("Tensor", self.head(features))

    def forward(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> Tensor:
        """Return logits of images.

        Args:
            x: images [B, C, H, W], normalised as the weights expect.
            sample_seeds: int64 [B], one number per image and step. In training they alone decide DropPath and patch
                dropout, so the same number gives the same decisions in any batch; None leaves it to torch's generator.

        Returns:
            Logits [B, K]; see `forward_head` for models without head or pooling.

        Raises:
            RequestError: the images' shape is not what the model takes.
        """
        return self.forward_head(self.forward_features(x, sample_seeds=sample_seeds))

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
        """Return the outputs of some blocks, as DINO's and timm's method of this name does.

        Args:
            x: images [B, C, H, W].
            n: the last n blocks, or the numbers of blocks (negative ones from the end), given back in ascending order.
            reshape: give patches as pictures [B, D, gh, gw] instead of [B, gh*gw, D].
            return_prefix_tokens: give (patches, prefix tokens [B, prefix, D]) for each block.
            norm: apply the final norm to each.

        Raises:
            RequestError: a block that the model doesn't have.
        """
        depth = len(self.blocks)
        wanted = range(depth - n, depth) if isinstance(n, int) else [index + depth * (index < 0) for index in n]
        if not wanted or min(wanted) < 0 or max(wanted) >= depth:
            raise RequestError(f"n={n!r} asks for blocks that a model with {depth} blocks doesn't have")
        gh, _ = self.patch_embed.grid_of(x)
        x = self.embed(x)
        out: list[Any] = []
        for index, block in enumerate(self.blocks):
            x = self._run(block, x, None)
            if index in wanted:
                tokens = self.norm(x) if norm else x
                prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
                if reshape:
                    patches = rearrange(patches, "b (gh gw) d -> b d gh gw", gh=gh).contiguous()
                out.append((patches, prefix) if return_prefix_tokens else patches)
        return out

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations: a third slower, far smaller.

        Args:
            enable: on or off.
        """
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that no optimizer should decay, beside the one-dimensional ones."""
        return {"pos_embed", "cls_token", "reg_token", "dist_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort parameters by depth, in the form that timm's optimizer helpers read.

        Args:
            coarse: part of that form; a ViT has one grouping.
        """
        del coarse
        return {
            "stem": r"^cls_token|^reg_token|^dist_token|^pos_embed|^patch_embed|^norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm\.", (99999,))],
        }

    @property
    def num_depths(self) -> int:
        """How many depths `parameter_depth` tells apart: the embedding, each block, the head."""
        return len(self.blocks) + 2

    def parameter_depth(self, name: str) -> int:
        """Return how deep a parameter sits: 0 the embedding, i + 1 block i (the last with `norm`), depth + 1 the head.

        Args:
            name: as in `named_parameters`.

        Raises:
            RequestError: no part of a ViT has such a name.
        """
        part, _, rest = name.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        if part not in _DEPTHS:
            raise RequestError(f"parameter {name!r} is in none of blocks, {', '.join(_DEPTHS)}: its depth is unknown")
        return _DEPTHS[part] % self.num_depths
