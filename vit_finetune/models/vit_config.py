"""`ViTConfig`: every choice that makes one plain Vision Transformer differ from another.

Plain, hashable values under timm's names; no torch in here. `vit.py` builds the network from it,
`variants.py` holds the registered ones, `infer.py` reads one off a state dict.

Sources: the option set is the one `timm/models/vision_transformer.py` (timm 1.0) registers names with.
Legend: B batch, C channels, H W image, gh gw patch grid, N tokens, D width, nh heads, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

GlobalPool = Literal["token", "avg", "map", ""]
NormLayer = Literal["layernorm", "rmsnorm"]
ActLayer = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
MlpLayer = Literal["mlp", "swiglu", "swiglu_packed"]
AttnLayer = Literal["attention", "diff"]
BlockFn = Literal["block", "res_post", "parallel_scaling", "parallel_things", "diff_parallel_scaling"]
WeightInit = Literal["", "jax", "skip"]

_CHOICES = {
    "global_pool": get_args(GlobalPool),
    "norm_layer": get_args(NormLayer),
    "act_layer": get_args(ActLayer),
    "mlp_layer": get_args(MlpLayer),
    "attn_layer": get_args(AttnLayer),
    "block_fn": get_args(BlockFn),
    "weight_init": get_args(WeightInit),
}
_POSITIVE = ("in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps")
_NOT_NEGATIVE = ("num_classes", "reg_tokens")
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_PAIRS = ("img_size", "patch_size")
_OPTIONAL: dict[str, tuple[type, ...]] = {"init_values": (float, NoneType), "fc_norm": (bool, NoneType)}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
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
        num_heads: attention heads; divides `embed_dim`.
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

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: GlobalPool = "token"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
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

    def __post_init__(self) -> None:
        """Refuse what no network can be built from: wrong types first, then ranges, then contradictions.

        Raises:
            RequestError: a field is outside of what it allows, or fields contradict each other.
        """
        problems = _type_problems(self) or _range_problems(self) or _conflicts(self)
        if problems:
            raise RequestError("this ViTConfig cannot be built: " + "; ".join(problems))

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches per column and row, (gh, gw); pixels that fill no whole patch are not seen."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, registers, distillation."""
        return self.class_token + self.reg_tokens + self.distilled

    @property
    def num_tokens(self) -> int:
        """Tokens N that the blocks see at `img_size`."""
        return self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]

    @property
    def norm_after_pool(self) -> bool:
        """Whether the final norm is `fc_norm` (on the pooled vector) instead of `norm` (on every token)."""
        return self.global_pool == "avg" if self.fc_norm is None else self.fc_norm

    def to_mapping(self) -> dict[str, Any]:
        """Return every field as plain JSON values (lists for tuples)."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ViTConfig:
        """Read a config from field names and values; sizes may be an int, a list or a tuple.

        Args:
            values: some or all fields; the others keep their defaults.

        Raises:
            RequestError: an unknown field, or a value that `__post_init__` refuses.
        """
        return cls().updated(values)

    def updated(self, values: Mapping[str, Any]) -> ViTConfig:
        """Return this config with some fields changed; sizes may be an int, a list or a tuple.

        Args:
            values: field names and their new values.

        Raises:
            RequestError: an unknown field, or a value that `__post_init__` refuses.
        """
        known = [field.name for field in fields(self)]
        for key in values:
            if key not in known:
                raise RequestError(f"ViTConfig has no field {key!r}{did_you_mean(key, known)}")
        return replace(self, **{key: _pair(value) if key in _PAIRS else value for key, value in values.items()})

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], *, known: Mapping[str, Any] | None = None) -> ViTConfig:
        """Read a config off the names and shapes of a state dict in timm's layout.

        Args:
            tensors: parameter names and tensors; only shapes are read.
            known: fields that weights do not tell, such as `{"num_heads": 6, "norm_eps": 1e-6, "act_layer": "gelu"}`.

        Raises:
            RequestError: the layout is another one, or fields that weights do not tell are not in `known`.
        """
        from vit_finetune.models.infer import infer_fields

        return cls.from_mapping(infer_fields(tensors, known or {}))


def _pair(value: Any) -> Any:
    """Return a side or a (height, width) as a tuple; anything else as it is, for `__post_init__` to refuse."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list) else value


def _type_problems(config: ViTConfig) -> list[str]:
    """Say which fields are not of their default's type; a float field takes an int too."""
    problems = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _PAIRS:
            good = isinstance(value, tuple) and [type(side) for side in value] == [int, int]
            allowed = "(height, width) in whole pixels"
        else:
            types = _OPTIONAL.get(field.name, (type(field.default),))
            good = type(value) in types or (float in types and type(value) is int)
            allowed = f"of type {' or '.join(kind.__name__ for kind in types)}"
        if not good:
            problems.append(f"{field.name}={value!r} is not {allowed}")
    return problems


def _range_problems(config: ViTConfig) -> list[str]:
    """Say which single fields are outside of what they allow."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    problems = [
        f"{name}={values[name]!r} is not one of {', '.join(map(repr, allowed))}" + did_you_mean(values[name], allowed)
        for name, allowed in _CHOICES.items()
        if values[name] not in allowed
    ]
    problems += [f"{name}={values[name]!r} has a side below 1 pixel" for name in _PAIRS if min(values[name]) < 1]
    problems += [f"{name}={values[name]!r} is not above 0" for name in _POSITIVE if not values[name] > 0]
    problems += [f"{name}={values[name]!r} is below 0" for name in _NOT_NEGATIVE if values[name] < 0]
    problems += [f"{name}={values[name]!r} is not in [0, 1)" for name in _RATES if not 0 <= values[name] < 1]
    if config.init_values is not None and not config.init_values > 0:
        problems.append(f"init_values={config.init_values!r} is not above 0 (None leaves LayerScale out)")
    return problems


def _conflicts(config: ViTConfig) -> list[str]:
    """Say which fields contradict each other; each field alone is fine."""
    parallel = config.block_fn in {"parallel_scaling", "diff_parallel_scaling"}
    differential = config.attn_layer == "diff" or config.block_fn == "diff_parallel_scaling"
    hidden = int(config.embed_dim * config.mlp_ratio)
    heads = config.num_heads * (2 if differential else 1)
    rules = {
        f"embed_dim={config.embed_dim} is not divisible by {heads}, its number of "
        f"{'query heads (two for each of num_heads)' if differential else 'heads'}": config.embed_dim % heads,
        "global_pool='token' needs class_token=True": config.global_pool == "token" and not config.class_token,
        "distilled=True needs global_pool='token', and no_embed_class, reg_tokens and fc_norm off": config.distilled
        and (config.global_pool != "token" or config.no_embed_class or config.reg_tokens or config.fc_norm),
        f"patch_size={config.patch_size} is larger than img_size={config.img_size}": 0 in config.grid_size,
        f"mlp_layer='swiglu_packed' needs an even hidden width, got {hidden}": config.mlp_layer == "swiglu_packed"
        and hidden % 2,
        f"block_fn={config.block_fn!r} has its own attention and MLP: leave attn_layer and mlp_layer at their defaults "
        "and scale_attn_norm and scale_mlp_norm off": parallel
        and (
            config.attn_layer != "attention"
            or config.mlp_layer != "mlp"
            or config.scale_attn_norm
            or config.scale_mlp_norm
        ),
    }
    return [text for text, broken in rules.items() if broken]
