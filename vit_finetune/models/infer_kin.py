"""What a state dict tells about a network with rotary or relative positions, and what it does not.

The counterpart of `infer.py` for the plain ViT's kin. Reads names and shapes of timm's layout, never values. Most of
what makes rotary positions leaves no trace in weights: it has to be known.

Source: the keys of `timm/models/eva.py` and `beit.py` (timm 1.0).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vit_finetune.common.errors import RequestError
from vit_finetune.models.network_config import PAIRS, NetworkConfig
from vit_finetune.models.rel_pos_vit import EXTRA_ROWS, RelPosViTConfig
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.models.vit_config import ViTConfig

if TYPE_CHECKING:
    from torch import Tensor

_TABLE = "attn.relative_position_bias_table"
_PATCHES = "patch_embed.proj.weight"
# Names that no plain ViT has.
_ROPE_MARKS = (".gamma_1", ".attn.q_bias", ".attn.q_proj.weight", "rope.freqs")
_UNTOLD_BY_ROPE = ("num_heads", "norm_eps", "img_size", "global_pool", "use_rot_pos_emb")
_UNTOLD_IF_TURNED = ("rope_type", "rope_temperature", "rope_rotate_half", "rope_grid_indexing", "rope_grid_offset")
_UNTOLD_BY_REL_POS = ("norm_eps", "img_size", "global_pool")


def family_of(names: Iterable[str]) -> type[NetworkConfig]:
    """Return the config of the family that has such names in timm's layout.

    Most Perception Encoders have no other names than plain ViTs, and are taken for such: name their architecture.

    Args:
        names: of a state dict.
    """
    names = list(names)
    if any(name.endswith(_TABLE) for name in names):
        return RelPosViTConfig
    return RopeViTConfig if any(name.endswith(_ROPE_MARKS) for name in names) else ViTConfig


def infer_rel_pos(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return `RelPosViTConfig` fields that the names and shapes tell, completed by `known`.

    Args:
        tensors: a state dict in timm's layout.
        known: fields and their values; they win over what is inferred.

    Raises:
        RequestError: the layout is another one, or a field is neither told nor known.
    """
    found = _common(tensors, needed=(f"blocks.0.{_TABLE}", "blocks.0.mlp.fc1.weight"))
    rows, found["num_heads"] = tensors[f"blocks.0.{_TABLE}"].shape
    found["mlp_ratio"] = _ratio(tensors["blocks.0.mlp.fc1.weight"].shape[0], found["embed_dim"])
    found["qkv_bias"] = "blocks.0.attn.q_bias" in tensors
    found["use_fc_norm"] = "fc_norm.weight" in tensors
    found |= {"global_pool": "avg"} if found["use_fc_norm"] else {}
    side = (math.isqrt(max(rows - EXTRA_ROWS, 0)) + 1) // 2
    if (2 * side - 1) ** 2 == rows - EXTRA_ROWS:
        found["img_size"] = tuple(side * patch for patch in found["patch_size"])
    return _completed(found | dict(known), _UNTOLD_BY_REL_POS)


def infer_rope(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return `RopeViTConfig` fields that the names and shapes tell, completed by `known`.

    Args:
        tensors: a state dict in timm's layout.
        known: fields and their values; they win over what is inferred.

    Raises:
        RequestError: the layout is another one, or a field is neither told nor known.
    """
    found = _common(tensors, needed=("blocks.0.attn.proj.weight", "blocks.0.mlp.fc2.weight"))
    found |= {
        "class_token": "cls_token" in tensors,
        "num_reg_tokens": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "use_abs_pos_emb": "pos_embed" in tensors,
        "use_pre_transformer_norm": "norm_pre.weight" in tensors,
        "use_post_transformer_norm": "norm.weight" in tensors,
        "use_fc_norm": "fc_norm.weight" in tensors,
        "norm_layer": "layernorm" if "blocks.0.norm1.bias" in tensors else "rmsnorm",
    }
    block = {name.removeprefix("blocks.0.") for name in tensors if name.startswith("blocks.0.")}
    found |= _rope_attention(block) | _rope_mlp(tensors, block, found["embed_dim"]) | dict(known)
    if "rope.freqs" in tensors:
        found |= {"use_rot_pos_emb": True, "rope_type": "mixed"}
    untold = (*_UNTOLD_BY_ROPE, *(("no_embed_class",) if found["use_abs_pos_emb"] else ()))
    return _completed(found, (*untold, *(_UNTOLD_IF_TURNED if found.get("use_rot_pos_emb", True) else ())))


def _common(tensors: Mapping[str, Tensor], *, needed: tuple[str, ...]) -> dict[str, Any]:
    """Read what both families say alike: sizes, LayerScale and the head."""
    missing = [name for name in (_PATCHES, *needed) if name not in tensors]
    if missing:
        raise RequestError(
            f"these weights are not in timm's layout of their family: no {' and no '.join(missing)} among "
            f"{len(tensors)} names; convert them first or give the architecture by name"
        )
    width, channels, *patch = tensors[_PATCHES].shape
    return {
        "embed_dim": width,
        "in_chans": channels,
        "patch_size": tuple(patch),
        "depth": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        "num_classes": tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        "init_values": 1e-5 if "blocks.0.gamma_1" in tensors else None,
    }


def _rope_attention(block: set[str]) -> dict[str, Any]:
    """Read the fields of attention off the names in the first block."""
    fused = "attn.qkv.weight" in block
    key_bias = bool({"attn.qkv.bias", "attn.k_proj.bias"} & block)
    return {
        "qkv_fused": fused,
        "qkv_bias": key_bias or bool({"attn.q_bias", "attn.q_proj.bias"} & block),
        "attn_type": "rope" if key_bias else "eva",
        "qk_norm": "attn.q_norm.weight" in block,
        "scale_attn_inner": "attn.norm.weight" in block,
        "attn_only_layer_scale": "gamma_1" in block and "gamma_2" not in block,
    }


def _rope_mlp(tensors: Mapping[str, Tensor], block: set[str], width: int) -> dict[str, Any]:
    """Read the fields of the MLP off the first block; how far its width was aligned, the width itself shows."""
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    apart, normed = "mlp.fc1_g.weight" in block, "mlp.norm.weight" in block
    packed = "mlp.fc1.weight" in block and tensors["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden
    aligned = apart and not normed
    return {
        "mlp_ratio": _ratio(hidden, width),
        "swiglu_mlp": apart or packed,
        "swiglu_align_to": (1 if hidden % 8 else 8) if aligned else 0,
        "scale_mlp": normed,
    }


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio for which int(width * ratio) is the hidden width, also where the quotient is rounded down."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _completed(found: dict[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields, sizes as pairs; ask for those that nothing told."""
    untold = [name for name in needed if name not in found]
    if untold:
        raise RequestError(
            f"weights do not tell {', '.join(untold)}; give {'it' if len(untold) == 1 else 'them'} "
            "or name the architecture (list_models() has the names)"
        )
    sides = {name: found[name] for name in PAIRS if isinstance(found[name], int)}
    return found | {name: (side, side) for name, side in sides.items()}
