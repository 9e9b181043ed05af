"""What every backbone can do, whatever its positions: features, logits, intermediate layers, depths of parameters.

A family (`vit.py`, `rope_vit.py`, `rel_pos_vit.py`) builds its parts under timm's names and says how tokens start and
how they are pooled; the rest of the house knows only what stands here.

Legend: B batch, C channels, H W image, gh gw patch grid, N tokens incl. prefix, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models.layers import PatchEmbed
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.prefix import forward_from
from vit_finetune.models.recompute import GradCheckpointing, run_block

# Where a parameter sits, by the first part of its name (`blocks.i` is i + 1): counted from the front, or, if negative,
# from the end.
_DEPTHS = {
    **dict.fromkeys(("cls_token", "reg_token", "dist_token", "pos_embed", "patch_embed", "norm_pre"), 0),
    "norm": -2,  # with the last block, as timm groups it
    **dict.fromkeys(("attn_pool", "fc_norm", "head", "head_dist"), -1),
    "rope": -1,  # learned frequencies serve every block, so timm groups them with none
}


class BlockBase(nn.Module):
    """What the network knows of a block: tokens in, tokens out, and its attention maps.

    Attributes:
        can_shorten: whether `forward` takes, after the seeds, how many tokens are wanted of it, and computes no others.
    """

    can_shorten = False

    def forward(self, x: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D] of tokens [B, N, D]; `sample_seeds` int64 [B] decide DropPath (see `noise.py`)."""
        raise NotImplementedError

    def attention_maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps [B, nh, N, N] that `forward` uses on tokens [B, N, D]."""
        raise NotImplementedError


class Blocks(nn.ModuleList):
    """A list of blocks that says so to type checkers."""

    def __iter__(self) -> Iterator[BlockBase]:
        """Iterate from the first block to the last."""
        return cast("Iterator[BlockBase]", super().__iter__())


class Backbone(nn.Module):
    """The base of every network: images to tokens to logits.

    Attributes of note: `config`, `name` (the architecture it was created as, or None), `embed_dim` and `num_features`
    (D), `num_classes` (K), `num_prefix_tokens` (before the patches), `eval_parts` (names of parts that stay in eval
    mode while the network trains: frozen ones), `boundary` (the last before all that trains, see `prefix.py`; 0: none).

    Args:
        config: the network.
    """

    patch_embed: PatchEmbed
    blocks: Blocks
    norm: nn.Module
    fc_norm: nn.Module
    head_drop: nn.Module
    head: nn.Module
    head_dist: nn.Linear | None  # DeiT's second head; of a plain ViT only

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.grad_checkpointing: GradCheckpointing = False
        self.name: str | None = None
        self.embed_dim = self.num_features = config.embed_dim
        self.num_classes, self.num_prefix_tokens = config.num_classes, config.num_prefix_tokens
        self.head_dist = None
        self.eval_parts: frozenset[str] = frozenset()
        self.boundary = 0

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and DropPath on or off, as torch does; `eval_parts` stay off.

        Args:
            mode: train (True) or evaluate.
        """
        super().train(mode)
        for name in self.eval_parts:
            self.get_submodule(name).eval()
        return self

    def start(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> tuple[Tensor, Sequence[tuple[Tensor, ...]]]:
        """Return what the first block sees, and what each block is given beside tokens and seeds.

        Args:
            x: images [B, C, H, W].
            sample_seeds: int64 [B], see `forward`.

        Returns:
            Tokens [B, N, D], prefix tokens first, then patches row by row (fewer of them while training with
            `patch_drop_rate`); and for each block the tensors of its positions, none where tokens carry them.
        """
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """Return one vector [B, D] per image of tokens [B, N, D]; all of them where `global_pool` is ""."""
        raise NotImplementedError

    def check_seeds(self, x: Tensor, sample_seeds: Tensor | None) -> None:
        """Refuse seeds that are not one int64 per image.

        Args:
            x: images [B, C, H, W].
            sample_seeds: what `forward` was given.

        Raises:
            RequestError: another dtype or shape.
        """
        if sample_seeds is not None and (sample_seeds.shape != x.shape[:1] or sample_seeds.dtype != torch.int64):
            raise RequestError(
                f"sample_seeds are {sample_seeds.dtype} of shape {tuple(sample_seeds.shape)}; "
                f"give one int64 per image, {x.shape[0]} of them"
            )

    @property
    def num_pooled_tokens(self) -> int | None:
        """How many tokens, from the first on, `forward_head` looks at; None for all."""
        return None

    def forward_features(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> Tensor:
        """Return all tokens after the last block and the final norm (where that norm comes before pooling).

        Args:
            x: images [B, C, H, W].
            sample_seeds: int64 [B], see `forward`.

        Returns:
            Tokens [B, N, D], prefix tokens first.
        """
        x, positions = self.start(x, sample_seeds=sample_seeds)
        for block, own in zip(self.blocks, positions, strict=True):
            x = run_block(block, x, sample_seeds, *own, grad_checkpointing=self.grad_checkpointing)
        out: Tensor = self.norm(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of tokens.

        Args:
            x: tokens [B, N, D] from `forward_features`.
            pre_logits: stop before the head.

        Returns:
            Logits [B, K], or features [B, D] with `pre_logits` or without a head; [B, N, ...] without pooling.
        """
        features: Tensor = self.head_drop(self.fc_norm(self.pool(x)))
        return features if pre_logits else cast("Tensor", self.head(features))

    def forward(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> Tensor:
        """Return logits of images.

        Args:
            x: images [B, C, H, W], normalised as the weights expect; or what `forward_prefix` gave of them at
                `boundary`, [B, N, D] or [B, D].
            sample_seeds: int64 [B], one number per image and step. In training they alone decide DropPath, patch
                dropout and the scaling of rotary positions, so the same number gives the same decisions in any batch;
                None leaves it to torch's generator.

        Returns:
            Logits [B, K]; see `forward_head` for models without head or pooling.

        Raises:
            RequestError: the images' shape is not what the model takes.
        """
        if x.ndim < 4 and self.boundary:
            return forward_from(self, x, self.boundary, sample_seeds=sample_seeds)
        x, positions = self.start(x, sample_seeds=sample_seeds)
        return self.finish(x, positions, sample_seeds=sample_seeds)

    def finish(
        self,
        x: Tensor,
        positions: Sequence[tuple[Tensor, ...]],
        *,
        first: int = 0,
        sample_seeds: Tensor | None = None,
    ) -> Tensor:
        """Return logits of tokens that have some blocks behind them; the last one makes only what is pooled.

        Args:
            x: tokens [B, N, D].
            positions: of every block, from `start`.
            first: the block that sees `x`.
            sample_seeds: int64 [B], see `forward`.
        """
        last, wanted = len(self.blocks) - 1, self.num_pooled_tokens
        for index, block in list(enumerate(self.blocks))[first:]:
            shortened = (wanted,) if index == last and wanted and block.can_shorten else ()
            more = (sample_seeds, *positions[index], *shortened)
            x = run_block(block, x, *more, grad_checkpointing=self.grad_checkpointing)
        return self.forward_head(self.norm(x))

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
        x, positions = self.start(x)
        out: list[Any] = []
        for index, (block, own) in enumerate(zip(self.blocks, positions, strict=True)):
            x = run_block(block, x, None, *own, grad_checkpointing=self.grad_checkpointing)
            if index in wanted:
                tokens = self.norm(x) if norm else x
                prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
                if reshape:
                    patches = rearrange(patches, "b (gh gw) d -> b d gh gw", gh=gh).contiguous()
                out.append((patches, prefix) if return_prefix_tokens else patches)
        return out

    def set_grad_checkpointing(self, enable: bool | GradCheckpointing = True) -> None:
        """Choose what is computed again in the backward pass instead of being kept.

        Args:
            enable: False: nothing; "elementwise": norms, activations and the like, in training, with LayerScale in the
                weights (see `recompute.py`); "blocks", or True as in timm: all between the inputs of blocks.

        Raises:
            RequestError: another value.
        """
        if enable not in (False, True, "elementwise", "blocks"):
            raise RequestError(f"grad_checkpointing {enable!r} is not one of False, True, 'elementwise', 'blocks'")
        self.grad_checkpointing = "blocks" if enable is True else enable

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
