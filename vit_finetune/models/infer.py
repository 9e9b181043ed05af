"""What a state dict tells about its network, and what it does not.

Reads names and shapes of timm's layout, never values. Heads, epsilon, activation and (for a model
with a class token and a plain `norm`) the pooling leave no trace in weights: they have to be known.

Source: the keys of `timm/models/vision_transformer.py` and `deit.py` (timm 1.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vit_finetune.common.errors import RequestError
from vit_finetune.models.network_config import PAIRS

if TYPE_CHECKING:
    from torch import Tensor

_ALWAYS = ("pos_embed", "patch_embed.proj.weight")
_UNTOLD = ("num_heads", "norm_eps", "act_layer", "global_pool", "img_size")


def infer_fields(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return ViTConfig fields that the names and shapes tell, completed by `known`.

    A block whose keys fit both is taken for "block" rather than "res_post", and pooling for one that
    leaves the prefix out, unless `known` says otherwise.

    Args:
        tensors: a state dict in timm's layout, without the prefixes of a wrapper.
        known: fields and their values; they win over what is inferred.

    Raises:
        RequestError: the layout is another one, or a field is neither told nor known.
    """
    keys = set(tensors)
    missing = [key for key in _ALWAYS if key not in keys]
    depth = 1 + max((int(key.split(".")[1]) for key in keys if key.startswith("blocks.")), default=-1)
    if missing or not depth:
        raise RequestError(
            f"these weights are not in timm's ViT layout: no {' and no '.join(missing or ['blocks.0.*'])} "
            f"among {len(keys)} names; convert them first or give the architecture by name"
        )
    found: dict[str, Any] = {"depth": depth}
    found |= {**_embedding(tensors), **_block(tensors), **_ending(tensors), **known}
    found |= {name: (found[name], found[name]) for name in PAIRS if isinstance(found.get(name), int)}
    found |= {**_grid(tensors, found), **_head_width(tensors, found)}
    after_pool = "fc_norm.weight" in tensors
    if found["final_norm"] and "fc_norm" not in found and after_pool != (found.get("global_pool") == "avg"):
        found["fc_norm"] = after_pool
    untold = [name for name in _UNTOLD if name not in found]
    if untold:
        raise RequestError(
            f"weights do not tell {', '.join(untold)}; give {'it' if len(untold) == 1 else 'them'} "
            "or name the architecture (list_models() has the names)"
        )
    return found


def _embedding(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the fields of everything before the blocks but the grid."""
    width, channels, *patch = tensors["patch_embed.proj.weight"].shape
    return {
        "embed_dim": width,
        "in_chans": channels,
        "patch_size": tuple(patch),
        "class_token": "cls_token" in tensors,
        "distilled": "dist_token" in tensors,
        "reg_tokens": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "pre_norm": "norm_pre.weight" in tensors,
        "embed_norm": "patch_embed.norm.weight" in tensors,
        "patch_norm_in": "patch_embed.norm_in.weight" in tensors,
    }


def _grid(tensors: Mapping[str, Tensor], found: Mapping[str, Any]) -> dict[str, Any]:
    """Read image size and `no_embed_class` off the number of positions, where they can be told."""
    rows = tensors["pos_embed"].shape[1]
    prefix = found["class_token"] + found["reg_tokens"] + found["distilled"]
    patch = found["patch_size"]
    if "img_size" in found:
        height, width = found["img_size"]
        patches = (height // patch[0]) * (width // patch[1])
        if rows not in {patches, patches + prefix}:
            raise RequestError(
                f"pos_embed has {rows} rows, but img_size={height, width} with patches of {tuple(patch)} pixels needs "
                f"{patches} (+ {prefix} for class and register tokens); give the size that the weights were made for"
            )
        return {"no_embed_class": bool(prefix) and rows == patches}
    # A square number of rows beside prefix tokens means that only patches have positions.
    for no_embed_class, patches in ((True, rows), (False, rows - prefix)):
        side = math.isqrt(max(patches, 0))
        known = found.get("no_embed_class", no_embed_class)
        if side and side * side == patches and known == no_embed_class:
            return {"img_size": (side * patch[0], side * patch[1]), "no_embed_class": no_embed_class and bool(prefix)}
    return {}


def _block(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the fields of a block off the names in the first one."""
    block = {
        key.removeprefix("blocks.0."): value.shape for key, value in tensors.items() if key.startswith("blocks.0.")
    }
    found: dict[str, Any]
    if "in_proj.weight" in block:
        kind = "diff_parallel_scaling" if "out_proj.weight" in block else "parallel_scaling"
        hidden = block["in_proj.weight"][0] - 3 * block["in_proj.weight"][1]
        found = {
            "qkv_bias": "in_proj.bias" in block,
            "proj_bias": bool({"out_proj.bias", "attn_out_proj.bias"} & set(block)),
        }
    else:
        things = "attns.0.norm.weight" in block
        kind = "parallel_things" if things else "block"
        block = {key.removeprefix("attns.0.").removeprefix("ffns.0."): shape for key, shape in block.items()}
        gated = "mlp.fc1_g.weight" in block
        hidden, width = block["mlp.fc1_g.weight" if gated else "mlp.fc1.weight"]
        packed = not gated and block["mlp.fc2.weight"][1] * 2 == hidden
        found = {
            "qkv_bias": "attn.qkv.bias" in block,
            "proj_bias": "attn.proj.bias" in block,
            "scale_attn_norm": "attn.norm.weight" in block,
            "scale_mlp_norm": "mlp.norm.weight" in block,
            "mlp_layer": "swiglu" if gated else "swiglu_packed" if packed else "mlp",
            "attn_layer": "diff" if "attn.lambda_q1" in block else "attention",
        }
    width = tensors["patch_embed.proj.weight"].shape[0]
    names = {key.removeprefix("attn.").removeprefix("in_") for key in block}
    by_name = {key.removeprefix("attn."): shape for key, shape in block.items()}
    head_norm, half_head = by_name.get("q_norm.weight"), by_name.get("lambda_q1")
    if half_head:
        found["num_heads"] = width // (2 * half_head[0])
    elif head_norm:
        found["num_heads"] = block.get("attn.qkv.weight", (3 * width,))[0] // (3 * head_norm[0])
    # The extra half keeps int(width * ratio) == hidden where the quotient was rounded down.
    ratio = hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width
    scaled = bool({"ls1.gamma", "ls.gamma"} & set(block))
    biased = bool({"norm1.bias", "norm.bias"} & names)
    return found | {
        "block_fn": kind,
        "mlp_ratio": ratio,
        "qk_norm": head_norm is not None,
        "init_values": 1e-5 if scaled else None,
        "norm_layer": "layernorm" if biased else "rmsnorm",
    }


def _head_width(tensors: Mapping[str, Tensor], found: Mapping[str, Any]) -> dict[str, Any]:
    """Read `attn_head_dim` off the rows of queries, keys and values, where heads don't share out the width."""
    names = ("blocks.0.attn.qkv.weight", "blocks.0.attns.0.attn.qkv.weight")
    rows = next((tensors[name].shape[0] for name in names if name in tensors), None)
    told = "attn_head_dim" in found or "num_heads" not in found
    if rows is None or rows == 3 * found["embed_dim"] or told:
        return {}
    heads = found["num_heads"]
    width, rest = divmod(rows, 3 * heads)
    if rest:
        raise RequestError(f"num_heads={heads} does not divide the {rows} rows of queries, keys and values")
    return {"attn_head_dim": width}


def _ending(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the fields of everything after the blocks."""
    found: dict[str, Any] = {
        "num_classes": tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        "final_norm": bool({"norm.weight", "fc_norm.weight"} & set(tensors)),
    }
    if "attn_pool.latent" in tensors:
        found["global_pool"] = "map"
    elif "fc_norm.weight" in tensors or "cls_token" not in tensors:
        found["global_pool"] = "avg"
    elif "dist_token" in tensors:
        found["global_pool"] = "token"
    return found
