"""ViT as Google's JAX code writes it: `.npz` files of vit_jax (the paper, augreg, SAM) and big_vision (SigLIP).

Sources: google-research/vision_transformer `vit_jax/models_vit.py` and `checkpoint.py`; google-research/big_vision
`models/vit.py`. Verified against timm's own reader of these files, and against a restatement of flax's network from the
file's arrays, bitwise on the way back.

Submodules are numbered by one counter in the released vit_jax files (attention 1, second norm 2, MLP 3) and by one
counter per class in newer ones and in big_vision (0, 1, 0). All numbers are read. Networks of the first kind (a class
token whose position is in the table) are written with the released numbers, which vit_jax and timm read; all others
with those of big_vision, which big_vision and timm read. big_vision may keep all blocks in one array each ("scan").
Its positions may be a formula (posemb="sincos2d"), which is in no file: the table is made for the `img_size` given.

Heads are told by the shapes, epsilon is 1e-6. `nn.gelu` of flax is the tanh form: that is what these networks compute,
though timm's configurations of the same weights say erf. Say act_layer="gelu" to read a file as timm does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.sincos import with_positions
from vit_finetune.weights.rewrites import Rewrite
from vit_finetune.weights.rules import Format, Rule

_BLOCK = "Transformer/encoderblock_{i}"
_POOL = "MAPHead_0"
_TRANSPOSED = "i o -> o i"
When = Callable[[ViTConfig], bool] | None


def _is_released(config: ViTConfig) -> bool:
    """Say whether a network is of the kind that vit_jax's released files hold."""
    return config.class_token and not config.no_embed_class and config.global_pool == "token"


def _is_big_vision(config: ViTConfig) -> bool:
    return not _is_released(config)


def _norm(theirs: str, ours: str, when: When = None) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}/scale", f"{ours}.weight", when=when),
        Rule(f"{theirs}/bias", f"{ours}.bias", when=when),
    )


def _mlp(theirs: str, ours: str, when: When = None) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{theirs}/Dense_{k}/{kind}", f"{ours}.fc{k + 1}.{name}", pattern, when=when)
        for k in (0, 1)
        for kind, name, pattern in (("kernel", "weight", _TRANSPOSED), ("bias", "bias", None))
    )


def _projections(theirs: str, parts: tuple[str, ...], ours: str, when: When = None) -> tuple[Rule, ...]:
    """Return the rules of queries, keys and values, which stand in as many tensors as `parts`, per head."""
    kernels, biases = (tuple(f"{theirs}/{part}/{kind}" for part in parts) for kind in ("kernel", "bias"))
    if len(parts) == 1:
        return (
            Rule(kernels[0], f"{ours}.weight", "d nh hd -> (nh hd) d", when=when),
            Rule(biases[0], f"{ours}.bias", "nh hd -> (nh hd)", when=when),
        )
    return (
        Rule(kernels, f"{ours}.weight", "parts d nh hd -> (parts nh hd) d", when=when),
        Rule(biases, f"{ours}.bias", "parts nh hd -> (parts nh hd)", when=when),
    )


def _out(theirs: str, ours: str, when: When = None) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}/out/kernel", f"{ours}.weight", "nh hd d -> d (nh hd)", when=when),
        Rule(f"{theirs}/out/bias", f"{ours}.bias", when=when),
    )


def _block(attention: int, second_norm: int, mlp: int, when: When) -> tuple[Rule, ...]:
    heads = f"{_BLOCK}/MultiHeadDotProductAttention_{attention}"
    return (
        *_projections(heads, ("query", "key", "value"), "blocks.{i}.attn.qkv", when),
        *_out(heads, "blocks.{i}.attn.proj", when),
        *_norm(f"{_BLOCK}/LayerNorm_{second_norm}", "blocks.{i}.norm2", when),
        *_mlp(f"{_BLOCK}/MlpBlock_{mlp}", "blocks.{i}.mlp", when),
    )


_HEADS = f"{_POOL}/MultiHeadDotProductAttention_0"
_RULES = (
    Rule("cls", "cls_token"),
    Rule("Transformer/posembed_input/pos_embedding", "pos_embed", when=_is_released),
    Rule("pos_embedding", "pos_embed", when=_is_big_vision),
    Rule("embedding/kernel", "patch_embed.proj.weight", "h w i o -> o i h w"),
    Rule("embedding/bias", "patch_embed.proj.bias"),
    *_norm(f"{_BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
    *_block(1, 2, 3, _is_released),
    *_block(0, 1, 0, _is_big_vision),
    *_norm("Transformer/encoder_norm", "norm"),
    Rule(f"{_POOL}/probe", "attn_pool.latent"),
    *_projections(_HEADS, ("query",), "attn_pool.q"),
    *_projections(_HEADS, ("key", "value"), "attn_pool.kv"),
    *_out(_HEADS, "attn_pool.proj"),
    *_norm(f"{_POOL}/LayerNorm_0", "attn_pool.norm"),
    *_mlp(f"{_POOL}/MlpBlock_0", "attn_pool.mlp"),
    Rule("head/kernel", "head.weight", _TRANSPOSED),
    Rule("head/bias", "head.bias"),
)


def _told(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:
    """Read heads and pooling off the arrays; the table of positions may be a formula."""
    if not any(name.endswith("pos_embedding") for name in shapes) and "img_size" not in known:
        raise RequestError(
            "the file holds no positions (pos_embedding). Where big_vision made it with posemb='sincos2d', they are a "
            "formula: give img_size, to make the table; else the file is damaged"
        )
    kernel = next((shape for name, shape in shapes.items() if name.endswith("/query/kernel")), ())
    heads = {"num_heads": kernel[-2]} if len(kernel) >= 3 else {}
    pool = "map" if f"{_POOL}/probe" in shapes else "token" if "cls" in shapes else "avg"
    return {**heads, "global_pool": pool}


def _check(config: ViTConfig) -> str:
    if config.act_layer != "gelu_tanh":
        return (
            f"act_layer={config.act_layer!r}, while flax's gelu is the tanh form; say act_layer='gelu_tanh' to write "
            "the weights as they are, and outputs move by about 1e-3"
        )
    if config.reg_tokens:
        return f"reg_tokens={config.reg_tokens} (these models have no register tokens)"
    if config.class_token != (config.global_pool == "token"):
        return (
            f"class_token={config.class_token} with global_pool={config.global_pool!r} (here a class token is there to "
            "be pooled, and only then)"
        )
    return ""


_TANH_LAYER = (
    "a tanh layer before the head, which no network here has; drop it together with the head, and train a new head"
)
_HYBRID = "a hybrid, with convolutions before the transformer; take a plain ViT instead"

JAX = Format(
    name="jax",
    library="vit_jax, big_vision",
    present=("embedding.kernel", "Transformer.encoder_norm.scale"),
    prefixes=("opt/target/", "params/img/", "params/"),
    prefix=lambda config: "" if _is_released(config) else "params/",
    rules=_RULES,
    stacked=("Transformer/encoderblock/{rest}", "Transformer/encoderblock_{i}/{rest}"),
    drop={"/opt/{rest}": "the optimizer's state"},
    aside={"/params/{rest}": "the text tower and its scale, which an image classifier doesn't need"},
    refuse=dict.fromkeys(("conv_root/{rest}", "gn_root/{rest}", "block{i}/unit{j}/{rest}"), _HYBRID),
    before_head={"pre_logits/{rest}": _TANH_LAYER},
    holds={
        "norm_eps": (1e-6,),
        "act_layer": (),
        "global_pool": ("token", "avg", "map"),
        "class_token": (True, False),
        "no_embed_class": (True, False),
    },
    defaults={"act_layer": "gelu_tanh"},
    rewrites=(
        Rewrite(
            words="the file holds no positions: the table of big_vision's posemb='sincos2d' was put in",
            read=with_positions,
            write=lambda tensors, config: dict(tensors),  # noqa: ARG005 - written, they are learned ones to big_vision
        ),
    ),
    told=_told,
    check=_check,
    file="model.npz",
    pos_embed="bilinear",
)

FORMATS = (JAX,)
