"""ViT of the package vit-pytorch (lucidrains), whose names changed three times.

Source: its wheels 0.20.0 (A), 1.2.0 (B), 1.6.5 (C) and 1.26.11 (D), each verified: equal in float64, bitwise back.

| format        | as in | patch embedding    | last norm                | `pool="mean"`             |
|---------------|-------|--------------------|--------------------------|---------------------------|
| vit_pytorch_a | 0.20  | linear             | `mlp_head.0`, after pool | class token and patches   |
| vit_pytorch_b | 1.2   | norm, linear, norm | `mlp_head.0`, after pool | class token and patches   |
| vit_pytorch_c | 1.6   | norm, linear, norm | `transformer.norm`       | class token and patches   |
| vit_pytorch_d | 1.26  | norm, linear, norm | `transformer.norm`       | patches; no class token   |

C and D have the same names; D's positions have two axes. The norm on raw patches (`patch_norm_in`) and heads of their
own width (`attn_head_dim`) are options that timm's plain ViT has no slot for. A network with one head as wide as itself
has no output projection there. `simple_vit.py` is the package's other network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.flat_patches import FLAT_TO_KERNEL, patch_fields
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Constant, Format, Rule

LAYER = "transformer.layers.{i}"
_QKV = "blocks.{i}.attn.qkv.weight"

Shapes = Mapping[str, tuple[int, ...]]


def _projects(config: ViTConfig) -> bool:
    return not (config.num_heads == 1 and config.attn_dim == config.embed_dim)


def patches_and_heads(shapes: Shapes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the flat patches tell, and the number of heads where there is no output projection."""
    flat = shapes.get("to_patch_embedding.2.weight") or shapes.get("to_patch_embedding.1.weight")
    found = patch_fields(flat[-1] if flat else None, fields)
    if any(".to_out." in name for name in shapes):
        return found
    rows, columns = next((shape for name, shape in shapes.items() if name.endswith("to_qkv.weight")), (0, 0))
    if fields.get("num_heads", 1) != 1 or rows != 3 * columns:
        raise RequestError(
            "the file has no output projections (to_out), which vit-pytorch leaves out only where one head is as wide "
            "as the network; they are missing"
        )
    return {**found, "num_heads": 1}


def _told_pool(shapes: Shapes, fields: Mapping[str, Any]) -> dict[str, Any]:
    pool = fields.get("global_pool")
    if pool is None:
        raise RequestError(
            "vit-pytorch's weights do not tell how it pools: give global_pool='token' (its pool='cls') or 'avg' "
            "(its pool='mean')"
        )
    return {**patches_and_heads(shapes, fields), "pool_include_prefix": pool == "avg"}


def _told_by_token(shapes: Shapes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """From 1.17 on a class token that isn't there has no rows, and only `pool="cls"` has one."""
    has_token = bool(shapes.get("cls_token", (0,))[0])
    return {
        **patches_and_heads(shapes, fields),
        "global_pool": "token" if has_token else "avg",
        "class_token": has_token,
    }


def no_head(config: ViTConfig) -> str:
    """Say why a network without a head can't be written; empty where it has one."""
    return "" if config.num_classes else "no head (its classifier always has one; keep the head, or put one in)"


def _check_mean(config: ViTConfig) -> str:
    if config.global_pool == "avg" and not config.pool_include_prefix:
        return "a mean that leaves the class token out (its own takes it in)"
    return no_head(config)


def _check_mean_then_norm(config: ViTConfig) -> str:
    if config.global_pool == "avg" and not config.norm_after_pool:
        return "a norm before the mean (its own comes after)"
    return _check_mean(config)


def _check_token(config: ViTConfig) -> str:
    wanted = config.global_pool == "token"
    return "" if config.class_token == wanted else "a class token beside the mean of patches (it has one or the other)"


def _renamed(tensors: Tensors, old: str, new: str) -> dict[str, Lazy]:
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in tensors.items()}


_NORM_BY_POOL = Rewrite(
    words="the norm behind pooling is timm's fc_norm",
    read=lambda tensors, fields: _renamed(tensors, "norm.", "fc_norm." if fields["global_pool"] == "avg" else "norm."),
    write=lambda tensors, config: _renamed(tensors, "fc_norm.", "norm."),  # noqa: ARG005 - one signature for all
)


def _without_empty_token(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:
    del fields
    return {name: value for name, value in tensors.items() if name != "cls_token" or value.shape[1]}


def _with_empty_token(tensors: Tensors, config: ViTConfig) -> dict[str, Lazy]:
    if config.class_token:
        return dict(tensors)
    empty = combine(lambda table: table[:, :0].clone(), [tensors["pos_embed"]], "no rows")
    return {"cls_token": empty, **tensors}


_EMPTY_TOKEN = Rewrite(words="a class token without rows is none", read=_without_empty_token, write=_with_empty_token)


def _linear_patches(place: int) -> tuple[Rule, ...]:
    layer = f"to_patch_embedding.{place}"
    return (
        Rule(f"{layer}.weight", "patch_embed.proj.weight", FLAT_TO_KERNEL),
        Rule(f"{layer}.bias", "patch_embed.proj.bias"),
    )


NORMED_PATCHES = (
    Rule("to_patch_embedding.1.{kind}", "patch_embed.norm_in.{kind}"),
    *_linear_patches(2),
    Rule("to_patch_embedding.3.{kind}", "patch_embed.norm.{kind}"),
)
_OLD_BLOCK = (
    Rule(f"{LAYER}.0.norm.{{kind}}", "blocks.{i}.norm1.{kind}"),
    Rule(f"{LAYER}.0.fn.to_qkv.weight", _QKV),
    Rule(f"{LAYER}.0.fn.to_out.0.{{kind}}", "blocks.{i}.attn.proj.{kind}", when=_projects),
    Rule(f"{LAYER}.1.norm.{{kind}}", "blocks.{i}.norm2.{kind}"),
    Rule(f"{LAYER}.1.fn.net.0.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule(f"{LAYER}.1.fn.net.3.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
)
BLOCK_START = (
    Rule(f"{LAYER}.0.norm.{{kind}}", "blocks.{i}.norm1.{kind}"),
    Rule(f"{LAYER}.0.to_qkv.weight", _QKV),
    Rule(f"{LAYER}.1.net.0.{{kind}}", "blocks.{i}.norm2.{kind}"),
    Rule(f"{LAYER}.1.net.1.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
)
_BLOCK = (
    *BLOCK_START,
    Rule(f"{LAYER}.0.to_out.0.{{kind}}", "blocks.{i}.attn.proj.{kind}", when=_projects),
    Rule(f"{LAYER}.1.net.4.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
)
_POSITIONS = (Rule("cls_token", "cls_token"), Rule("pos_embedding", "pos_embed"))
_FLAT_POSITIONS = tuple(Rule(rule.theirs, rule.ours, "n d -> 1 n d") for rule in _POSITIONS)
LAST_NORM = Rule("transformer.norm.{kind}", "norm.{kind}")

_ONE_HEAD = "vit-pytorch leaves the output projection out where one head is as wide as the network"
_NO_PROJECTION = (
    Constant(
        name="blocks.{i}.attn.proj.weight",
        like=_QKV,
        shape=lambda shape: (shape[1], shape[1]),
        value="eye",
        reason=_ONE_HEAD,
        when=lambda config: not _projects(config),
    ),
    Constant(
        name="blocks.{i}.attn.proj.bias",
        like=_QKV,
        shape=lambda shape: (shape[1],),
        reason=_ONE_HEAD,
        when=lambda config: not _projects(config),
    ),
)
_HOLDS: dict[str, tuple[Any, ...]] = {"norm_eps": (1e-5,), "qkv_bias": (False,), "attn_head_dim": ()}
HOLDS_NORMED = _HOLDS | {"patch_norm_in": (True,), "embed_norm": (True,)}
_HOLDS_POOL = {"global_pool": ("token", "avg"), "pool_include_prefix": (False, True)}

FORMATS = (
    Format(
        name="vit_pytorch_a",
        library="vit-pytorch 0.x",
        present=("to_patch_embedding.1.weight", "pos_embedding", "0.fn.to_qkv.weight", "mlp_head.1.weight"),
        absent=(".to_patch_embedding.3.",),
        rules=(
            *_POSITIONS,
            *_linear_patches(1),
            *_OLD_BLOCK,
            Rule("mlp_head.0.{kind}", "norm.{kind}"),
            Rule("mlp_head.1.{kind}", "head.{kind}"),
        ),
        ours_only=_NO_PROJECTION,
        holds=_HOLDS | _HOLDS_POOL | {"fc_norm": (False, True)},
        told=_told_pool,
        check=_check_mean_then_norm,
        rewrites=(_NORM_BY_POOL,),
        file="model.pt",
    ),
    Format(
        name="vit_pytorch_b",
        library="vit-pytorch 1.0 to 1.2",
        present=("to_patch_embedding.3.weight", "pos_embedding", "0.fn.to_qkv.weight", "mlp_head.1.weight"),
        rules=(
            *_POSITIONS,
            *NORMED_PATCHES,
            *_OLD_BLOCK,
            Rule("mlp_head.0.{kind}", "norm.{kind}"),
            Rule("mlp_head.1.{kind}", "head.{kind}"),
        ),
        ours_only=_NO_PROJECTION,
        holds=HOLDS_NORMED | _HOLDS_POOL | {"fc_norm": (False, True)},
        told=_told_pool,
        check=_check_mean_then_norm,
        rewrites=(_NORM_BY_POOL,),
        file="model.pt",
    ),
    Format(
        name="vit_pytorch_c",
        library="vit-pytorch 1.3 to 1.16",
        present=("to_patch_embedding.3.weight", "pos_embedding", "0.to_qkv.weight", "transformer.norm.weight"),
        dims={"pos_embedding": 3},
        rules=(*_POSITIONS, *NORMED_PATCHES, *_BLOCK, LAST_NORM, Rule("mlp_head.{kind}", "head.{kind}")),
        ours_only=_NO_PROJECTION,
        holds=HOLDS_NORMED | _HOLDS_POOL,
        told=_told_pool,
        check=_check_mean,
        file="model.pt",
    ),
    Format(
        name="vit_pytorch_d",
        library="vit-pytorch from 1.17",
        present=("to_patch_embedding.3.weight", "pos_embedding", "0.to_qkv.weight", "transformer.norm.weight"),
        dims={"pos_embedding": 2},
        rules=(*_FLAT_POSITIONS, *NORMED_PATCHES, *_BLOCK, LAST_NORM, Rule("mlp_head.{kind}", "head.{kind}")),
        ours_only=_NO_PROJECTION,
        holds=HOLDS_NORMED | {"global_pool": ("token", "avg"), "class_token": (True, False)},
        told=_told_by_token,
        check=_check_token,
        rewrites=(_EMPTY_TOKEN,),
        file="model.pt",
    ),
)
