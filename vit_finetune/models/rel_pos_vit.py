"""BEiT: a ViT whose attention learns, per block and head, a bias for each distance between two patches.

State-dict names, shapes and numbers are timm's. Not here: BEiT's shared bias table and learned absolute positions,
which no name that timm registers uses.

Reading order: `layers.py`, `backbone.py`, `scaled_blocks.py`, here.
Sources: BEiT (arXiv 2106.08254), BEiT v2 (2208.06366); layout of timm 1.0.
Legend: B batch, S B or 1, C channels, H W image, gh gw patch grid, N tokens incl. class, D width, nh heads, T rows of
a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_finetune.models.attending import attend, softmax_map
from vit_finetune.models.attention import merge_heads, split_heads
from vit_finetune.models.backbone import Backbone, Blocks
from vit_finetune.models.layer_scale import project
from vit_finetune.models.layers import ACTIVATIONS, Mlp, PatchEmbed
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.noise import PatchDropout
from vit_finetune.models.parts import build_norm
from vit_finetune.models.recompute import recomputed
from vit_finetune.models.scaled_blocks import PlacedAttention, ScaledBlock, init_scaled_weights

RelPosGlobalPool = Literal["avg", "token", ""]
RelPosWeightInit = Literal["", "skip"]
# Distances that no two patches have: class token to patch, patch to class token, class token to itself.
EXTRA_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class RelPosViTConfig(NetworkConfig):
    """One BEiT, from pixels to logits. The defaults are BEiT-B/16 at 224 pixels without LayerScale.

    Attributes:
        img_size: (height, width) in pixels that the bias tables are made for.
        patch_size: (height, width) of a patch in pixels.
        in_chans: image channels.
        num_classes: outputs of the head; 0 leaves the head out.
        global_pool: "avg" the mean of the patches, "token" the class token, "" none (the head runs on every token).
        embed_dim: width D of a token.
        depth: number of blocks.
        num_heads: attention heads nh; divides `embed_dim`.
        qkv_bias: bias on queries and values; keys have none.
        mlp_ratio: hidden width of an MLP = int(embed_dim * mlp_ratio).
        init_values: LayerScale's initial value, above 0; None leaves LayerScale out.
        use_fc_norm: put the final norm after pooling; None means "where `global_pool` is avg".
        norm_eps: epsilon of every norm.
        drop_rate: dropout before the head, in [0, 1), like all rates.
        pos_drop_rate: dropout of the tokens that the first block sees.
        patch_drop_rate: share of patches left out in training, the same number for each image; timm's BEiT has none.
        proj_drop_rate: dropout in MLPs and after attention's output projection.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; earlier ones rise linearly from 0.
        weight_init: "" BEiT's scheme, "skip" memory as it is.
    """

    KIND: ClassVar = "ViT with relative positions"
    CHOICES: ClassVar = {"global_pool": get_args(RelPosGlobalPool), "weight_init": get_args(RelPosWeightInit)}
    OPTIONAL: ClassVar = {"init_values": (float, NoneType), "use_fc_norm": (bool, NoneType)}

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: RelPosGlobalPool = "avg"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    init_values: float | None = None
    use_fc_norm: bool | None = None
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    weight_init: RelPosWeightInit = ""

    @property
    def places_any_grid(self) -> bool:
        """Not: the rows of a table of distances are of one grid."""
        return False

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token."""
        return 1

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm is `fc_norm` (on the pooled vector) instead of `norm` (on every token)."""
        return self.global_pool == "avg" if self.use_fc_norm is None else self.use_fc_norm

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], *, known: Mapping[str, Any] | None = None) -> Self:
        """Read a config off the names and shapes of a state dict in timm's layout; see `NetworkConfig`."""
        from vit_finetune.models.infer_kin import infer_rel_pos

        return cls.from_mapping(infer_rel_pos(tensors, known or {}))

    def acting(self, name: str) -> Any:
        """Return a field as the network acts on it: the final norm follows the pooling."""
        return self.norm_after_pool if name == "use_fc_norm" else getattr(self, name)

    def _conflicts(self) -> list[str]:
        rules = {
            f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}": self.embed_dim
            % self.num_heads,
            f"patch_size={self.patch_size} is larger than img_size={self.img_size}": 0 in self.grid_size,
        }
        return [text for text, broken in rules.items() if broken]


def table_rows(grid: tuple[int, int]) -> int:
    """Return the rows T of a bias table: one for each (vertical, horizontal) distance, and the extra ones."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + EXTRA_ROWS


def distance_index(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return which row of a bias table each pair of tokens reads.

    Args:
        grid: (gh, gw).
        device: where the result lies.

    Returns:
        int64 [N, N], query by key; token 0 is the class token.
    """
    gh, gw = grid
    row, column = (torch.arange(gh, device=device), torch.arange(gw, device=device))
    vertical = rearrange(row[:, None] - row, "q k -> q 1 k 1") + gh - 1
    horizontal = rearrange(column[:, None] - column, "q k -> 1 q 1 k") + gw - 1
    patches = rearrange(vertical * (2 * gw - 1) + horizontal, "qy qx ky kx -> (qy qx) (ky kx)")
    from_class, to_class, to_itself = (table_rows(grid) - EXTRA_ROWS + extra for extra in range(EXTRA_ROWS))
    first_row = nn.functional.pad(patches.new_full((1, gh * gw), from_class), (1, 0), value=to_itself)
    return torch.cat([first_row, nn.functional.pad(patches, (1, 0), value=to_class)])


class RelPosAttention(PlacedAttention):
    """Self-attention with a learned bias for each distance; keys have no bias, which a softmax would not see.

    Args:
        config: the network.
    """

    def __init__(self, config: RelPosViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads, self.attn_drop_rate = config.num_heads, config.attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if config.qkv_bias else None
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(config.grid_size), config.num_heads))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(config.proj_drop_rate)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, nh, N, hd] of tokens [B, N, D]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = recomputed(torch.add, q, self.q_bias), recomputed(torch.add, v, self.v_bias)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def _bias(self, positions: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, [S, nh, N, N]."""
        if positions is None:
            return None
        return rearrange(self.relative_position_bias_table[positions], "s q k nh -> s nh q k")

    def forward(self, x: Tensor, positions: Tensor | None = None, *, gamma: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, D].

        Args:
            x: tokens [B, N, D].
            positions: rows of the bias table [S, N, N], from `distance_index`; None for no bias.
            gamma: the factors [D] of LayerScale, times which the tokens are; None for none.
        """
        q, k, v = self._heads(x)
        dropout = self.attn_drop_rate if self.training else 0.0
        mixed = recomputed(merge_heads, attend(q, k, v, dropout=dropout, bias=self._bias(positions)))
        out: Tensor = self.proj_drop(project(self.proj, mixed, gamma))
        return out

    def attention_map(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the map [B, nh, N, N] that `forward` uses on tokens [B, N, D]."""
        q, k, _ = self._heads(x)
        return softmax_map(q, k, bias=self._bias(positions))


def build_rel_pos_block(config: RelPosViTConfig, index: int) -> ScaledBlock:
    """Build block `index`, from 0."""
    hidden = int(config.embed_dim * config.mlp_ratio)
    mlp = Mlp(config.embed_dim, hidden, act=ACTIVATIONS["gelu"], drop=config.proj_drop_rate)
    return ScaledBlock(config, index, attn=RelPosAttention(config), mlp=mlp)


class RelPosViT(Backbone):
    """A BEiT with random weights.

    Args:
        config: the network. With `weight_init="skip"` the layers keep what their construction gave them.
    """

    config: RelPosViTConfig

    def __init__(self, config: RelPosViTConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(
            img_size=config.img_size,
            patch_size=config.patch_size,
            in_chans=config.in_chans,
            embed_dim=dim,
            bias=True,
            norm=None,
            dynamic=False,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_drop = nn.Dropout(config.pos_drop_rate)
        self.patch_drop = PatchDropout(config.patch_drop_rate, num_prefix_tokens=1)
        self.blocks = Blocks(build_rel_pos_block(config, index) for index in range(config.depth))
        self.norm = build_norm(config, dim, wanted=not config.norm_after_pool)
        self.fc_norm = build_norm(config, dim, wanted=config.norm_after_pool)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        if config.weight_init != "skip":
            init_scaled_weights(self)

    def start(self, x: Tensor, *, sample_seeds: Tensor | None = None) -> tuple[Tensor, Sequence[tuple[Tensor, ...]]]:
        """Return what the first block sees, and for each block which bias a pair of tokens has.

        Args:
            x: images [B, C, H, W].
            sample_seeds: int64 [B], see `forward`.

        Returns:
            Tokens [B, N, D], the class token first; for each block the same int64 [S, N, N].
        """
        grid = self.patch_embed.grid_of(x)
        self.check_seeds(x, sample_seeds)
        tokens = self.pos_drop(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patch_embed(x)], dim=1))
        index = distance_index(grid, x.device)[None]
        kept = self.patch_drop.choose(tokens, sample_seeds)
        if kept is not None:
            tokens = self.patch_drop.keep(tokens, kept)
            own = nn.functional.pad(kept + 1, (1, 0))  # the class token stays
            index = index[0][own[:, :, None], own[:, None, :]]
        return tokens, [(index,)] * len(self.blocks)

    def pool(self, x: Tensor) -> Tensor:
        """Return one vector [B, D] per image of tokens [B, N, D]; all of them where `global_pool` is ""."""
        if self.config.global_pool == "token":
            return x[:, 0]
        return x[:, 1:].mean(dim=1) if self.config.global_pool == "avg" else x

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that no optimizer should decay, beside the one-dimensional ones."""
        tables = {f"blocks.{index}.attn.relative_position_bias_table" for index in range(len(self.blocks))}
        return {"cls_token"} | tables
