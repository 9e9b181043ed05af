"""DINOv3 as facebook research released it: timm's names but for registers, biases, LayerScale and the gated MLP.

Queries, keys and values share a bias, of which a mask (`bias_mask`: 1, 0, 1) turns the keys' part off; without the mask
keys have their bias. `rope_embed.periods` follows from the temperature, and is demanded to.

Source: facebookresearch/dinov3 `models/vision_transformer.py`, `layers/attention.py` and
`layers/rope_position_encoding.py`.

Verified against a restatement of this network, and against timm's reader of these files; bitwise on the way back where
the masked part is zero. Epsilon is 1e-5 in all released networks, the temperature 100, and any picture size is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.weights.formats.facebook import SAME_BLOCK, TRAINING_HEAD
from vit_finetune.weights.formats.hf_dinov3 import DINOV3_DEFAULTS, DINOV3_HOLDS, check_dinov3
from vit_finetune.weights.formats.timm import KIN
from vit_finetune.weights.lazy import Lazy, combine
from vit_finetune.weights.rewrites import Rewrite, Tensors
from vit_finetune.weights.rules import Constant, Format, Rule

_PERIODS = "rope_embed.periods"
_MASK = ".attn.qkv.bias_mask"


def periods(head_dim: int, temperature: float) -> Tensor:
    """Return the periods [head_dim / 4] of the angles, float32.

    Args:
        head_dim: width of a head.
        temperature: ratio of the fastest frequency to the slowest one, roughly.
    """
    places: Tensor = 2 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2)
    return torch.pow(torch.tensor(temperature, dtype=torch.float32), places)


def _masked_keys_off(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:  # noqa: ARG001 - as all
    changed = dict(tensors)
    for name in [name for name in tensors if name.endswith(_MASK)]:
        bias = name.removesuffix("_mask")
        whole, mask = changed.pop(bias, None), changed.pop(name)
        if whole is None or whole.shape != mask.shape:
            shape = "is not there" if whole is None else f"has the shape {list(whole.shape)}"
            raise RequestError(f"{name} has the shape {list(mask.shape)}, but the bias that it masks {shape}")
        for part, start in (("q", 0), ("v", 2)):
            target = bias.replace("qkv.bias", f"{part}_bias")
            changed[target] = combine(_third(start), [whole, mask], f"the bias of {part}, masked")
    return changed


def _third(start: int) -> Any:
    return lambda bias, mask: (bias * mask.to(bias.dtype)).chunk(3)[start]


def _with_mask(tensors: Tensors, config: RopeViTConfig) -> dict[str, Lazy]:  # noqa: ARG001 - one signature for all
    changed = {name: value for name, value in tensors.items() if not name.endswith((".q_bias", ".v_bias"))}
    for name in [name for name in tensors if name.endswith(".q_bias")]:
        query, value = tensors[name], tensors[name.replace("q_bias", "v_bias")]
        bias = name.replace("q_bias", "qkv.bias")
        changed[bias] = combine(_with_zero_keys, [query, value], "keys have a bias of zeros")
        changed[f"{bias}_mask"] = combine(_mask, [query], "1 for queries and values, 0 for keys")
    return changed


def _with_zero_keys(query: Tensor, value: Tensor) -> Tensor:
    return torch.cat([query, torch.zeros_like(query), value])


def _mask(query: Tensor) -> Tensor:
    one = torch.ones_like(query)
    return torch.cat([one, 0 * one, one])


def _without_periods(tensors: Tensors, fields: Mapping[str, Any]) -> dict[str, Lazy]:
    changed = dict(tensors)
    if (table := changed.pop(_PERIODS, None)) is None:
        return changed
    if len(table.shape) != 1:
        raise RequestError(f"{_PERIODS} has the shape {list(table.shape)} instead of one period for each angle")
    temperature = fields["rope_temperature"]
    wanted, found = periods(4 * table.shape[0], temperature), table.compute()
    # Files may hold them in bfloat16, which has three digits.
    if not found.is_meta and not torch.allclose(found.float(), wanted, rtol=1e-2):
        raise NotRepresentable(
            f"{_PERIODS} is not what rope_temperature={temperature} gives (the longest is {float(found.max()):.4g} "
            f"instead of {float(wanted.max()):.4g}); give the temperature that the network was trained with"
        )
    return changed


def _with_periods(tensors: Tensors, config: RopeViTConfig) -> dict[str, Lazy]:
    token = tensors["cls_token"]
    head_dim, temperature = config.embed_dim // config.num_heads, config.rope_temperature

    def table(like: Tensor) -> Tensor:
        return periods(head_dim, temperature).to(dtype=torch.promote_types(like.dtype, torch.float32)).to(like.device)

    return {**tensors, _PERIODS: combine(table, [token], "periods of the temperature")}


def _told(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - as all
    table, token = shapes.get(_PERIODS), shapes.get("cls_token")
    return {"num_heads": token[-1] // (4 * table[0])} if table and token and len(table) == 1 and table[0] else {}


FACEBOOK_DINOV3 = Format(
    name="facebook_dinov3",
    library="facebookresearch/dinov3",
    families=(RopeViTConfig,),
    present=("patch_embed.proj.weight", f"storage_tokens|{_PERIODS}"),
    absent=(
        *(mark for mark in KIN if mark not in (".mask_token", ".storage_tokens", ".rope_embed.")),
        ".attn.wq.",  # Sapiens2's, which shares the registers' name
    ),
    prefixes=("backbone.",),
    rules=(
        Rule("cls_token", "cls_token"),
        Rule("storage_tokens", "reg_token"),
        Rule("patch_embed.proj.{kind}", "patch_embed.proj.{kind}"),
        *SAME_BLOCK,
        Rule(f"blocks.{{i}}{_MASK}", f"blocks.{{i}}{_MASK}"),
        Rule("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
        Rule("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
        Rule("blocks.{i}.mlp.w1.{kind}", "blocks.{i}.mlp.fc1_g.{kind}"),
        Rule("blocks.{i}.mlp.w2.{kind}", "blocks.{i}.mlp.fc1_x.{kind}"),
        Rule("blocks.{i}.mlp.w3.{kind}", "blocks.{i}.mlp.fc2.{kind}", when=lambda config: config.swiglu_mlp),
        Rule(_PERIODS, _PERIODS),
        Rule("norm.{kind}", "norm.{kind}"),
    ),
    rewrites=(
        Rewrite(words="the biases of keys, which a mask turns off, are none", read=_masked_keys_off, write=_with_mask),
        Rewrite(
            words="the periods of the angles follow from the temperature", read=_without_periods, write=_with_periods
        ),
    ),
    theirs_only=(
        Constant(name="mask_token", like="cls_token", shape=lambda shape: (1, shape[-1])),
        *(Constant(name=f"blocks.{{i}}.ls{k}.gamma", like="blocks.{i}.norm1.weight", value=1.0) for k in (1, 2)),
    ),
    aside={
        "mask_token": "used in pre-training only",
        "local_cls_norm.{kind}": "a norm of small crops in pre-training only",
        "cls_norm.{kind}": "a norm of class tokens in pre-training only",
        **dict.fromkeys(("/dino_head.{rest}", "/ibot_head.{rest}", "projectors.{rest}"), TRAINING_HEAD),
    },
    unplaced={"head.{kind}": "a release has no classifier; leave the head out, or convert to timm"},
    holds=DINOV3_HOLDS,
    defaults={**DINOV3_DEFAULTS, "norm_eps": 1e-5, "img_size": (224, 224)},
    told=_told,
    check=check_dinov3,
    file="model.pth",
)

FORMATS = (FACEBOOK_DINOV3,)
