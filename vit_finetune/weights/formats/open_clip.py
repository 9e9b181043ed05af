"""The image tower of CLIP as open_clip and OpenAI write it, alone or inside the whole model.

- `open_clip`: `visual.conv1...`, its own transformer. Epsilon is 1e-5; heads, activation and pooling are said by
  `open_clip_config.json` (`model_cfg`) or by the model's name, never by the weights.
- `openai_clip`: the same names in OpenAI's releases, which are told by the three sizes that they carry. There, heads
  are 64 wide and the activation is quick_gelu, always.
- `open_clip_timm`: a network of timm's inside open_clip, behind `visual.trunk.`.

Sources: open_clip 3.3 `transformer.py`, `timm_model.py`, `model.py`; openai/CLIP `clip/model.py`. Verified against
open_clip in both directions, bitwise, and OpenAI's archives against a TorchScript file of the same structure. What the
text tower holds is set aside, so that the way back gives the whole model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.variants import variant_config
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Constant, Format, Rule, structure

_BLOCK = "transformer.resblocks.{i}"
_TEXT = "the text tower and its scale, which an image classifier doesn't need"
_TEXT_NAMES = (
    *("/positional_embedding", "/transformer.{rest}", "/token_embedding.weight", "/ln_final.{kind}"),
    *("/text_projection", "/text_projection.{kind}", "/logit_scale", "/logit_bias", "/text.{rest}"),
    *("/text_decoder.{rest}", "/attn_mask", "/cls_emb"),
)
_NO_BIAS = Constant(
    name="head.bias",
    like="head.weight",
    reason="CLIP's projection has no bias; leave the head out or take another format",
)


def _renamed(tensors: Tensors, old: str, new: str) -> dict[str, Lazy]:
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in tensors.items()}


def _norm_after_pool(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:
    after = fields.get("fc_norm")
    if after or (after is None and fields.get("global_pool") == "avg"):
        return _renamed(tensors, "norm.", "fc_norm.")
    return dict(tensors)


FINAL_NORM = Rewrite(
    words="the last norm comes after pooling (fc_norm)",
    read=_norm_after_pool,
    write=lambda tensors, config: _renamed(tensors, "fc_norm.", "norm."),  # noqa: ARG005 - one signature for all
)


def _has_pre_norm(config: ViTConfig) -> bool:
    return config.pre_norm


def _check(config: ViTConfig) -> str:
    if config.num_classes == 0:
        return "no head (CLIP's tower always ends in a projection; keep the head)"
    if config.in_chans != 3:
        return f"in_chans={config.in_chans} (it holds 3)"
    if not config.final_norm:
        return "no final norm (it always has one)"
    return ""


def _config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read `model_cfg` of `open_clip_config.json`, alone or with what stands around it."""
    model = config.get("model_cfg", config)
    vision = model.get("vision_cfg", {})
    if vision.get("attentional_pool"):
        raise NotRepresentable(_POOLER)
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    if (vision.get("act_kwargs") or {}).get("approximate") == "tanh":
        act = "gelu_tanh"
    width, pool = vision.get("width", 768), vision.get("pool_type", "tok")
    after = bool(vision.get("final_ln_after_pool", False))
    found: dict[str, Any] = {
        "num_heads": width // vision.get("head_width", 64),
        "act_layer": act,
        "norm_eps": float((vision.get("norm_kwargs") or {}).get("eps", 1e-5)),
        "global_pool": {"tok": "token", "avg": "avg", "none": ""}[pool],
        "fc_norm": after and pool != "tok",  # for one token the order makes no difference
    }
    return found | {"img_size": _image_size(vision)}


def _image_size(vision: Mapping[str, Any]) -> tuple[int, int]:
    size = vision.get("image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _config_to(config: ViTConfig) -> dict[str, Any]:
    height, width = config.img_size
    vision: dict[str, Any] = {
        "image_size": height if height == width else [height, width],
        "layers": config.depth,
        "width": config.embed_dim,
        "head_width": config.embed_dim // config.num_heads,
        "patch_size": config.patch_size[0],
        "mlp_ratio": config.mlp_ratio,
    }
    if config.init_values is not None:
        vision["ls_init_value"] = config.init_values
    if not config.pre_norm:
        vision["no_ln_pre"] = True
    if config.global_pool == "avg":
        vision |= {"pool_type": "avg", "final_ln_after_pool": config.norm_after_pool}
    if config.norm_eps != 1e-5:
        vision["norm_kwargs"] = {"eps": config.norm_eps}
    if config.act_layer == "gelu_tanh":
        vision["act_kwargs"] = {"approximate": "tanh"}
    quick = {"quick_gelu": True} if config.act_layer == "quick_gelu" else {}
    return {"model_cfg": {"embed_dim": config.num_classes, **quick, "vision_cfg": vision}}


def _reference(folder: Path, config: ViTConfig) -> Callable[[Tensor], Tensor]:
    library = importlib.import_module("open_clip")
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}  # every CLIP needs one
    tower = library.CLIP(**_config_to(config)["model_cfg"], text_cfg=text).visual
    state = load_file(folder / OPEN_CLIP.file)
    tower.load_state_dict(
        {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")},
        strict=True,
    )
    forward: Callable[[Tensor], Tensor] = tower.float().eval()
    return forward


_POOLER = (
    "CoCa pools by attention over many queries, which no network here has; take a CLIP model of open_clip, or leave "
    "attn_pool.*, ln_post.* and proj out and train a new norm and head"
)
_INNER = "an option of open_clip's own attention block that no network here has"

OPEN_CLIP = Format(
    name="open_clip",
    library="open_clip",
    present=("class_embedding", "conv1.weight", "transformer.resblocks.0.ln_1.weight"),
    absent=(".input_resolution",),
    prefixes=("visual.",),
    prefix=lambda config: "visual.",  # noqa: ARG005 - the same for every network
    rules=(
        Rule("class_embedding", "cls_token", "d -> 1 1 d"),
        Rule("positional_embedding", "pos_embed", "n d -> 1 n d"),
        Rule("conv1.weight", "patch_embed.proj.weight"),
        Rule("ln_pre.{kind}", "norm_pre.{kind}"),
        Rule(f"{_BLOCK}.ln_1.{{kind}}", "blocks.{i}.norm1.{kind}"),
        Rule(f"{_BLOCK}.attn.in_proj_{{kind}}", "blocks.{i}.attn.qkv.{kind}"),
        Rule(f"{_BLOCK}.attn.out_proj.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
        Rule(f"{_BLOCK}.ls_1.gamma", "blocks.{i}.ls1.gamma"),
        Rule(f"{_BLOCK}.ln_2.{{kind}}", "blocks.{i}.norm2.{kind}"),
        Rule(f"{_BLOCK}.mlp.c_fc.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
        Rule(f"{_BLOCK}.mlp.c_proj.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
        Rule(f"{_BLOCK}.ls_2.gamma", "blocks.{i}.ls2.gamma"),
        Rule("ln_post.{kind}", "norm.{kind}"),
        Rule("proj", "head.weight", "i o -> o i"),
    ),
    ours_only=(
        _NO_BIAS,
        Constant(
            name="patch_embed.proj.bias",
            like="norm.weight",
            unless="norm_pre.weight",
            reason="CLIP's patches have no bias",
        ),
    ),
    aside=dict.fromkeys(_TEXT_NAMES, _TEXT),
    refuse={
        "attn_pool.{rest}": _POOLER,
        "attn_pool_contrastive.{rest}": _POOLER,
        f"{_BLOCK}.ln_attn.{{kind}}": _INNER,
        f"{_BLOCK}.mlp.ln.{{kind}}": _INNER,
        f"{_BLOCK}.attn.ln_inner.{{kind}}": _INNER,
        f"{_BLOCK}.attn.head_scale": _INNER,
        f"{_BLOCK}.attn.logit_scale": _INNER,
    },
    holds={
        "norm_eps": (),
        "act_layer": ("gelu", "quick_gelu", "gelu_tanh"),
        "init_values": (),
        "pre_norm": (True, False),
        "global_pool": ("token", "avg"),
        "fc_norm": (True, False),
    },
    defaults={"norm_eps": 1e-5},
    check=_check,
    rewrites=(FINAL_NORM,),
    config_from=_config_from,
    config_to=_config_to,
    config_file="open_clip_config.json",
    reference=_reference,
    file="open_clip_model.safetensors",
)


def _openai_told(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return {"num_heads": shapes["class_embedding"][-1] // 64} if "class_embedding" in shapes else {}


def _openai_check(config: ViTConfig) -> str:
    if config.embed_dim != 64 * config.num_heads:
        return f"num_heads={config.num_heads} at width {config.embed_dim} (its heads are 64 wide)"
    return _check(config)


_SIZES = ("input_resolution", "context_length", "vocab_size")
OPENAI_CLIP = replace(
    OPEN_CLIP,
    name="openai_clip",
    library="openai/CLIP",
    present=(*OPEN_CLIP.present, "input_resolution"),
    absent=(),
    rules=tuple(rule for rule in OPEN_CLIP.rules if ".ls_" not in str(rule.theirs)),
    aside={**OPEN_CLIP.aside, **dict.fromkeys((f"/{name}" for name in _SIZES), "sizes that OpenAI's loader reads")},
    theirs_only=(),
    ours_only=(_NO_BIAS,),
    holds={"norm_eps": (1e-5,), "act_layer": ("quick_gelu",), "pre_norm": (True,)},
    defaults={},
    told=_openai_told,
    check=_openai_check,
    rewrites=(),
    config_from=None,
    config_to=None,
    reference=None,
    file="model.pt",
)

_TRUNK_NAMES = (
    *("cls_token", "reg_token", "pos_embed", "patch_embed.{rest}", "norm_pre.{kind}", "blocks.{i}.{rest}"),
    *("norm.{kind}", "fc_norm.{kind}", "attn_pool.{rest}"),
)
_OTHER_TRUNK = (
    "the network inside is of timm's EVA or BEiT family, not a plain ViT; build it by its own name and load the trunk"
)


def _only_as_found(config: ViTConfig) -> bool:  # noqa: ARG001 - one signature for all
    """Leave a name to files that had it; a network is written with the other one."""
    return False


def _trunk_config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = config.get("model_cfg", config).get("vision_cfg", {})
    inside = variant_config(vision["timm_model_name"])
    if not isinstance(inside, ViTConfig):
        raise NotRepresentable(_OTHER_TRUNK)
    found = {name: getattr(inside, name) for name in ("num_heads", "norm_eps", "act_layer")}
    # The norm stays where it is when pooling is changed; its name tells where.
    return found | {"global_pool": vision.get("timm_pool") or inside.global_pool, "img_size": _image_size(vision)}


OPEN_CLIP_TIMM = Format(
    name="open_clip_timm",
    library="open_clip",
    present=("trunk.patch_embed.proj.weight",),
    prefixes=("visual.trunk.", "trunk."),
    prefix=lambda config: "visual.trunk.",  # noqa: ARG005 - the same for every network
    aliases={"/head.{rest}": "/visual.head.{rest}"},
    rules=(
        *(Rule(name, name) for name in _TRUNK_NAMES),
        Rule("/visual.head.proj.weight", "head.weight"),
        Rule("/visual.head.proj.bias", "head.bias", when=_only_as_found),
        Rule("head.{kind}", "head.{kind}", when=_only_as_found),
    ),
    ours_only=(_NO_BIAS,),
    aside=dict.fromkeys(_TEXT_NAMES, _TEXT),
    refuse={
        "/visual.head.mlp.{rest}": "the projection is an MLP, where no network here has more than one layer; leave out "
        "visual.head.* and train a new head",
        "/visual.head.pool.{rest}": "open_clip's own attention pooling, which no network here has; leave out "
        "visual.head.* and train a new head",
        **dict.fromkeys(("blocks.{i}.gamma_1", "blocks.{i}.attn.q_bias", "rope.{rest}"), _OTHER_TRUNK),
    },
    holds=dict.fromkeys(structure(), ()),
    config_from=_trunk_config_from,
    file="open_clip_model.safetensors",
)

FORMATS = (OPEN_CLIP, OPENAI_CLIP, OPEN_CLIP_TIMM)
