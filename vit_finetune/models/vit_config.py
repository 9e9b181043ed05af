"""`ViTConfig`: every choice that makes one plain Vision Transformer differ from another.

Plain, hashable values under timm's names; no torch in here. `vit.py` builds the network from it,
`variants.py` holds the registered ones, `infer.py` reads one off a state dict.

Sources: the option set is the one `timm/models/vision_transformer.py` (timm 1.0) registers names with.
Legend: B batch, C channels, H W image, gh gw patch grid, N tokens, D width, nh heads, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from vit_finetune.models.network_config import NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor

GlobalPool = Literal["token", "avg", "map", ""]
NormLayer = Literal["layernorm", "rmsnorm"]
ActLayer = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
MlpLayer = Literal["mlp", "swiglu", "swiglu_packed"]
AttnLayer = Literal["attention", "diff"]
BlockFn = Literal["block", "res_post", "parallel_scaling", "parallel_things", "diff_parallel_scaling"]
WeightInit = Literal["", "jax", "skip"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(NetworkConfig):
    """One plain ViT, from pixels to logits. The defaults are ViT-B/16 at 224 pixels.

    Attributes:
        img_size: (height, width) in pixels that the position table is made for.
        patch_size: (height, width) of a patch in pixels.
        in_chans: image channels.
        num_classes: outputs of the head; 0 leaves the head out.
        global_pool: "token" the class token, "avg" the mean of the patches, "map" attention pooling,
            "" none (the head runs on every token).
        embed_dim: width D of a token.
        depth: number of blocks.
        num_heads: attention heads; divides `embed_dim`, unless `attn_head_dim` is given.
        attn_head_dim: width of a head where it is not embed_dim / num_heads (vit-pytorch); None where it is.
        mlp_ratio: hidden width of an MLP = int(embed_dim * mlp_ratio).
        qkv_bias: bias on queries, keys and values.
        qk_norm: normalise queries and keys per head.
        proj_bias: bias on the attention's output projection and on every linear layer of the MLP.
        scale_attn_norm: a norm between attention and its output projection (BEiT-3).
        scale_mlp_norm: a norm before the last linear layer of the MLP (BEiT-3).
        init_values: LayerScale's initial value, above 0; None leaves LayerScale out.
        class_token: prepend a class token.
        distilled: DeiT's distillation token and second head.
        no_embed_class: positions for patches only, not for class and register tokens.
        reg_tokens: number of register tokens.
        pre_norm: a norm after the embedding; the patch convolution then has no bias (CLIP).
        final_norm: a norm after the last block.
        fc_norm: put that norm after pooling instead; None means "where `global_pool` is avg".
        pool_include_prefix: pool over class and register tokens too.
        dynamic_img_size: accept any image that patches divide, resampling positions in each forward.
        norm_layer: "layernorm" or "rmsnorm", for every norm.
        norm_eps: epsilon of every norm.
        embed_norm: a norm right after the patch convolution (AIMv2).
        patch_norm_in: a norm right before it, over the pixels of each patch (vit-pytorch).
        act_layer: activation of every MLP; "gelu" is the erf form.
        mlp_layer: "mlp", "swiglu" (two input layers) or "swiglu_packed" (one, split in half).
        attn_layer: "attention" or "diff" (differential attention).
        block_fn: how attention and MLP are put together; see `blocks.py`.
        drop_rate: dropout before the head, in [0, 1), like all rates.
        pos_drop_rate: dropout after adding positions.
        patch_drop_rate: share of patches left out in training, the same number for each image.
        proj_drop_rate: dropout in MLPs and after attention's output projection.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; earlier ones rise linearly from 0.
        weight_init: "" truncated normal 0.02, "jax" the original's scheme, "skip" memory as it is.
    """

    KIND: ClassVar = "plain ViT"
    CHOICES: ClassVar = {
        "global_pool": get_args(GlobalPool),
        "norm_layer": get_args(NormLayer),
        "act_layer": get_args(ActLayer),
        "mlp_layer": get_args(MlpLayer),
        "attn_layer": get_args(AttnLayer),
        "block_fn": get_args(BlockFn),
        "weight_init": get_args(WeightInit),
    }
    OPTIONAL: ClassVar = {
        "init_values": (float, NoneType),
        "fc_norm": (bool, NoneType),
        "attn_head_dim": (int, NoneType),
    }

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: GlobalPool = "token"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    attn_head_dim: int | None = None
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    proj_bias: bool = True
    scale_attn_norm: bool = False
    scale_mlp_norm: bool = False
    init_values: float | None = None
    class_token: bool = True
    distilled: bool = False
    no_embed_class: bool = False
    reg_tokens: int = 0
    pre_norm: bool = False
    final_norm: bool = True
    fc_norm: bool | None = None
    pool_include_prefix: bool = False
    dynamic_img_size: bool = False
    norm_layer: NormLayer = "layernorm"
    norm_eps: float = 1e-6
    embed_norm: bool = False
    patch_norm_in: bool = False
    act_layer: ActLayer = "gelu"
    mlp_layer: MlpLayer = "mlp"
    attn_layer: AttnLayer = "attention"
    block_fn: BlockFn = "block"
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    weight_init: WeightInit = ""

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, registers, distillation."""
        return self.class_token + self.reg_tokens + self.distilled

    @property
    def attn_dim(self) -> int:
        """Width of the queries, of the keys and of the values, all heads together."""
        return self.embed_dim if self.attn_head_dim is None else self.num_heads * self.attn_head_dim

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm is `fc_norm` (on the pooled vector) instead of `norm` (on every token)."""
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    def acting(self, name: str) -> Any:
        """Return a field as the network acts on it: where the final norm is follows from two fields."""
        return self.final_norm and self.norm_after_pool if name == "fc_norm" else getattr(self, name)

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], *, known: Mapping[str, Any] | None = None) -> Self:
        """Read a config off the names and shapes of a state dict in timm's layout.

        Args:
            tensors: parameter names and tensors; only shapes are read.
            known: fields that weights do not tell, such as `{"num_heads": 6, "norm_eps": 1e-6, "act_layer": "gelu"}`.

        Raises:
            RequestError: the layout is another one, or fields that weights do not tell are not in `known`.
        """
        from vit_finetune.models.infer import infer_fields

        return cls.from_mapping(infer_fields(tensors, known or {}))

    def _conflicts(self) -> list[str]:
        parallel = self.block_fn in {"parallel_scaling", "diff_parallel_scaling"}
        differential = self.attn_layer == "diff" or self.block_fn == "diff_parallel_scaling"
        hidden = int(self.embed_dim * self.mlp_ratio)
        heads = self.num_heads * (2 if differential else 1)
        own_width = self.attn_head_dim is not None
        rules = {
            f"embed_dim={self.embed_dim} is not divisible by {heads}, its number of "
            f"{'query heads (two for each of num_heads)' if differential else 'heads'}": self.embed_dim % heads
            and (not own_width or self.global_pool == "map"),
            f"attn_head_dim={self.attn_head_dim} is not above 0 (None divides embed_dim among the heads)": own_width
            and self.attn_dim <= 0,
            f"attn_head_dim={self.attn_head_dim} needs attn_layer='attention' and a block_fn with attention of that "
            "kind: 'block', 'res_post' or 'parallel_things'": own_width and (parallel or differential),
            "global_pool='token' needs class_token=True": self.global_pool == "token" and not self.class_token,
            "distilled=True needs global_pool='token', and no_embed_class, reg_tokens and fc_norm off": self.distilled
            and (self.global_pool != "token" or self.no_embed_class or self.reg_tokens or self.fc_norm),
            f"patch_size={self.patch_size} is larger than img_size={self.img_size}": 0 in self.grid_size,
            f"mlp_layer='swiglu_packed' needs an even hidden width, got {hidden}": self.mlp_layer == "swiglu_packed"
            and hidden % 2,
            f"block_fn={self.block_fn!r} has its own attention and MLP: leave attn_layer and mlp_layer at their "
            "defaults and scale_attn_norm and scale_mlp_norm off": parallel
            and (
                self.attn_layer != "attention" or self.mlp_layer != "mlp" or self.scale_attn_norm or self.scale_mlp_norm
            ),
        }
        return [text for text, broken in rules.items() if broken]
