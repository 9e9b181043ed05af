"""`RopeViTConfig`: every choice that makes one ViT with rotary positions differ from another.

Plain, hashable values under timm's names; no torch in here. `rope_vit.py` builds the network from it,
`rope_variant_table.py` holds the registered ones.

Sources: the options with which `timm/models/eva.py` (timm 1.0) registers names.
Legend: D width, nh hd heads and head width, gh gw patch grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from vit_finetune.models.network_config import NetworkConfig, is_pair

if TYPE_CHECKING:
    from torch import Tensor

RopeGlobalPool = Literal["avg", "token", "map", ""]
RopeAttnType = Literal["eva", "rope"]
RopeType = Literal["cat", "mixed", "dinov3"]
RopeGridIndexing = Literal["ij", "xy"]
RopeNormLayer = Literal["layernorm", "rmsnorm"]
RopeWeightInit = Literal["", "skip"]


@dataclass(frozen=True, kw_only=True)
class RopeViTConfig(NetworkConfig):
    """One ViT of timm's EVA family, from pixels to logits: EVA, EVA-02, ROPE-ViT, Perception Encoder, DINOv3, Sapiens2.

    Attributes:
        img_size: (height, width) in pixels.
        patch_size: (height, width) of a patch in pixels.
        in_chans: image channels.
        num_classes: outputs of the head; 0 leaves the head out.
        global_pool: "avg" the mean of the patches, "token" the class token, "map" attention pooling over all tokens,
            "" none (the head runs on every token).
        embed_dim: width D of a token.
        depth: number of blocks.
        num_heads: attention heads nh; divides `embed_dim`.
        num_kv_heads: for each block the number of key and value heads, each shared by as many query heads as needed
            (grouped-query attention); None for as many as `num_heads`.
        qkv_bias: bias on queries and values, with attn_type "rope" on keys too.
        qkv_fused: one projection for queries, keys and values instead of three.
        qk_norm: normalise queries and keys per head.
        mlp_ratio: hidden width of an MLP = int(embed_dim * mlp_ratio), twice that for a gated MLP in one matrix.
        swiglu_mlp: a gated MLP: with `scale_mlp` or `swiglu_align_to` with two input layers, else with one.
        swiglu_align_to: round the hidden width of a gated MLP up to a multiple of this; 0 leaves it.
        scale_mlp: a norm before the last linear layer of the MLP.
        scale_attn_inner: a norm between attention and its output projection.
        attn_type: "eva" or "rope": whether keys go without a bias, or have one.
        init_values: LayerScale's initial value, above 0; None leaves LayerScale out.
        attn_only_layer_scale: LayerScale on attention only.
        class_token: prepend a class token.
        num_reg_tokens: number of register tokens.
        no_embed_class: learned positions for patches only, not for class and register tokens.
        use_abs_pos_emb: learned positions, added to the tokens.
        use_rot_pos_emb: rotary positions, turning queries and keys.
        rope_type: how patches get angles, see `rope.py`: "cat" by counting them, "dinov3" by their place between -1 and
            1, "mixed" by counting, with learned frequencies for each block and head.
        rope_grid_offset: added to the coordinates, in patches; not with "mixed".
        rope_grid_indexing: "ij" (row first) or "xy" (column first): which axis has the lower frequencies' channels.
        rope_temperature: ratio of the fastest frequency to the slowest one, roughly.
        rope_rotate_half: pair channel i with channel i + hd/2 instead of 2i with 2i + 1; not with "mixed".
        rope_rescale_coords: in training, scale the coordinates by a factor in [1/r, r], log-uniform; None for not.
        ref_feat_shape: (gh, gw) on which coordinates are stretched ("cat" only); None leaves them as they are.
        use_post_norm: normalise what attention and MLP give rather than what they take (EVA-02 enormous).
        use_pre_transformer_norm: a norm after the embedding; the patch convolution then has no bias.
        use_post_transformer_norm: a norm after the last block; None means "unless there is one after pooling".
        use_fc_norm: a norm after pooling; None means "where `global_pool` is avg".
        attn_pool_num_heads: heads of attention pooling; None for `num_heads`.
        attn_pool_mlp_ratio: MLP ratio of attention pooling; None for `mlp_ratio`.
        dynamic_img_size: accept any image that patches divide, positions made for each forward.
        norm_layer: "layernorm" or "rmsnorm", for every norm.
        norm_eps: epsilon of every norm.
        drop_rate: dropout before the head, in [0, 1), like all rates.
        pos_drop_rate: dropout after adding positions.
        patch_drop_rate: share of patches left out in training, the same number for each image.
        proj_drop_rate: dropout in MLPs and after attention's output projection.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; earlier ones rise linearly from 0.
        weight_init: "" BEiT's scheme, "skip" memory as it is.
    """

    KIND: ClassVar = "ViT with rotary positions"
    CHOICES: ClassVar = {
        "global_pool": get_args(RopeGlobalPool),
        "attn_type": get_args(RopeAttnType),
        "rope_type": get_args(RopeType),
        "rope_grid_indexing": get_args(RopeGridIndexing),
        "norm_layer": get_args(RopeNormLayer),
        "weight_init": get_args(RopeWeightInit),
    }
    OPTIONAL: ClassVar = {
        **dict.fromkeys(("init_values", "attn_pool_mlp_ratio", "rope_rescale_coords"), (float, NoneType)),
        **dict.fromkeys(("use_post_transformer_norm", "use_fc_norm"), (bool, NoneType)),
        **dict.fromkeys(("num_kv_heads", "ref_feat_shape"), (tuple, NoneType)),
        "attn_pool_num_heads": (int, NoneType),
    }

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: RopeGlobalPool = "avg"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    num_kv_heads: tuple[int, ...] | None = None
    qkv_bias: bool = True
    qkv_fused: bool = True
    qk_norm: bool = False
    mlp_ratio: float = 4.0
    swiglu_mlp: bool = False
    swiglu_align_to: int = 0
    scale_mlp: bool = False
    scale_attn_inner: bool = False
    attn_type: RopeAttnType = "eva"
    init_values: float | None = None
    attn_only_layer_scale: bool = False
    class_token: bool = True
    num_reg_tokens: int = 0
    no_embed_class: bool = False
    use_abs_pos_emb: bool = True
    use_rot_pos_emb: bool = False
    rope_type: RopeType = "cat"
    rope_grid_offset: float = 0.0
    rope_grid_indexing: RopeGridIndexing = "ij"
    rope_temperature: float = 10000.0
    rope_rotate_half: bool = False
    rope_rescale_coords: float | None = None
    ref_feat_shape: tuple[int, int] | None = None
    use_post_norm: bool = False
    use_pre_transformer_norm: bool = False
    use_post_transformer_norm: bool | None = None
    use_fc_norm: bool | None = None
    attn_pool_num_heads: int | None = None
    attn_pool_mlp_ratio: float | None = None
    dynamic_img_size: bool = False
    norm_layer: RopeNormLayer = "layernorm"
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    weight_init: RopeWeightInit = ""

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, registers."""
        return self.class_token + self.num_reg_tokens

    @property
    def norm_after_pool(self) -> bool:
        """Whether there is a norm of the pooled vector, `fc_norm`."""
        return self.global_pool == "avg" if self.use_fc_norm is None else self.use_fc_norm

    @property
    def norm_before_pool(self) -> bool:
        """Whether there is a norm of every token, `norm`."""
        if self.use_post_transformer_norm is None:
            return not self.norm_after_pool
        return self.use_post_transformer_norm

    @property
    def hidden_width(self) -> int:
        """Units of an MLP after its activation; truncated, then aligned, as timm does."""
        hidden = int(self.embed_dim * self.mlp_ratio)
        return hidden + (-hidden % self.swiglu_align_to if self.swiglu_align_to else 0)

    @property
    def blocks_alike(self) -> bool:
        """Whether all blocks have the same number of parameters."""
        return self.num_kv_heads is None

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], *, known: Mapping[str, Any] | None = None) -> Self:
        """Read a config off the names and shapes of a state dict in timm's layout; see `NetworkConfig`."""
        from vit_finetune.models.infer_kin import infer_rope

        return cls.from_mapping(infer_rope(tensors, known or {}))

    def acting(self, name: str) -> Any:
        """Return a field as the network acts on it: norms follow the pooling."""
        acts = {"use_fc_norm": self.norm_after_pool, "use_post_transformer_norm": self.norm_before_pool}
        return acts.get(name, getattr(self, name))

    def kv_heads(self, index: int) -> int:
        """Return the number of key and value heads of block `index`, from 0."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads[index]

    def _conflicts(self) -> list[str]:
        mixed = self.use_rot_pos_emb and self.rope_type == "mixed"
        rules = {
            f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}": self.embed_dim
            % self.num_heads,
            "global_pool='token' needs class_token=True": self.global_pool == "token" and not self.class_token,
            f"patch_size={self.patch_size} is larger than img_size={self.img_size}": 0 in self.grid_size,
            "rotary positions need a head width divisible by 4, got "
            f"{self.embed_dim // self.num_heads}": self.use_rot_pos_emb and self.embed_dim // self.num_heads % 4,
            f"rope_temperature={self.rope_temperature} is not above 0": not self.rope_temperature > 0,
            f"rope_rescale_coords={self.rope_rescale_coords} is below 1": self.rope_rescale_coords is not None
            and self.rope_rescale_coords < 1,
            f"ref_feat_shape={self.ref_feat_shape} is not (rows, columns) above 0": self.ref_feat_shape is not None
            and not (is_pair(self.ref_feat_shape) and min(self.ref_feat_shape) > 0),
            "ref_feat_shape is for rope_type='cat' only": self.ref_feat_shape is not None and self.rope_type != "cat",
            "rope_type='mixed' has rope_grid_offset=0 and rope_rotate_half=False": mixed
            and (self.rope_grid_offset or self.rope_rotate_half),
            "swiglu_align_to needs swiglu_mlp=True": self.swiglu_align_to and not self.swiglu_mlp,
            "attn_only_layer_scale=True needs init_values": self.attn_only_layer_scale and self.init_values is None,
            "use_post_norm=True goes without init_values, qk_norm, num_kv_heads and swiglu_align_to": self.use_post_norm
            and (self.init_values is not None or self.qk_norm or self.num_kv_heads or self.swiglu_align_to),
            **self._kv_conflicts(mixed=mixed),
        }
        return [text for text, broken in rules.items() if broken]

    def _kv_conflicts(self, *, mixed: bool) -> dict[str, bool]:
        if self.num_kv_heads is None:
            return {}
        heads = self.num_kv_heads
        fits = all(type(number) is int and number > 0 and self.num_heads % number == 0 for number in heads)
        return {
            f"num_kv_heads={heads} is not one divisor of num_heads={self.num_heads} for each of {self.depth} blocks": (
                len(heads) != self.depth or not fits
            ),
            "num_kv_heads needs attn_type='rope', qkv_fused=False and another rope_type than 'mixed'": (
                self.attn_type != "rope" or self.qkv_fused or mixed
            ),
        }
