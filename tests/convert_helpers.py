"""Small random networks, one for each layout of weights and as many kinds as it says it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.models import VisionTransformer, ViTConfig
from vit_finetune.weights.conversion import from_timm
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.formats.hf_dinov2 import gated_width
from vit_finetune.weights.formats.sincos import sincos_table
from vit_finetune.weights.rules import Format, structure, template

# Formats of plain ViTs that are read and written; the others are known to say why they aren't.
NAMES = [name for name, one in FORMATS.items() if "{rest}" not in one.refuse and ViTConfig in one.families]
# What stands for "any" in `Format.holds`; truth values are added.
ANY = {
    "global_pool": ("token", "avg", "map", ""),
    "norm_eps": (1e-6, 1e-5, 1e-12),
    "act_layer": ("gelu", "gelu_tanh", "quick_gelu", "silu"),
    "init_values": (None, 0.1),
    "reg_tokens": (0, 1, 3),
    "attn_head_dim": (None, 3),
    "norm_layer": ("layernorm", "rmsnorm"),
    "mlp_layer": ("mlp", "swiglu", "swiglu_packed"),
    "attn_layer": ("attention", "diff"),
    "block_fn": ("block", "parallel_scaling", "parallel_things", "diff_parallel_scaling"),
}
# What weights don't tell about the networks below, and users say.
_TOLD = ("img_size", "patch_size", "in_chans", "num_heads", "attn_head_dim", "norm_eps", "act_layer", "global_pool")
_POOLING = ("fc_norm", "pool_include_prefix", "no_embed_class")


Network = tuple[ViTConfig, dict[str, Tensor], dict[str, Tensor]]


def options(name: str) -> dict[str, tuple[Any, ...]]:
    """Return each structural field of a network to the values that a format says it holds."""
    return {field: FORMATS[name].allowed(field) or ANY.get(field, (False, True)) for field in structure()}


def network_for(name: str, fields: dict[str, Any]) -> Network | None:
    """Make a network of random values and write it in a format.

    Args:
        name: of the format.
        fields: of `ViTConfig`; what contradicts another field or the format's conventions is put right.

    Returns:
        Its config, its tensors under our names and under the format's; None where there is no such network, or the
        format refuses it.
    """
    try:
        config = ViTConfig(**_put_right(name, fields))
        ours = random_tensors(config, FORMATS[name])
        return config, ours, from_timm(ours, FORMATS[name], config)
    except (RequestError, NotRepresentable):
        return None


def _put_right(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    fields = dict(fields)
    width = fields["embed_dim"]
    if name == "openai_clip":
        fields["embed_dim"] = 64 * fields["num_heads"]
    if fields["global_pool"] == "token":
        fields |= {"class_token": True, "fc_norm": False, "pool_include_prefix": False}
    if fields["block_fn"] != "block":
        fields |= {"attn_layer": "attention", "mlp_layer": "mlp", "scale_attn_norm": False, "scale_mlp_norm": False}
    if fields["distilled"]:
        fields |= {"global_pool": "token", "class_token": True, "no_embed_class": False, "reg_tokens": 0}
        fields["fc_norm"] = False
    if fields["mlp_layer"] == "swiglu_packed":
        fields |= {"act_layer": "silu", "mlp_ratio": 2 * gated_width(ViTConfig(embed_dim=width, num_heads=1)) / width}
    elif "dinov2" in name:
        fields |= {"act_layer": "gelu", "mlp_ratio": 2.0}
    return fields


def random_tensors(config: ViTConfig, layout: Format) -> dict[str, Tensor]:
    """Return a network's tensors, random but where a format leaves out what never is anything else."""
    with torch.device("meta"):
        shapes = VisionTransformer(config.updated({"weight_init": "skip"})).state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
    for constant in layout.ours_only:
        for name, value in tensors.items():
            if template(constant.name).fullmatch(name) and (constant.when is None or constant.when(config)):
                value.copy_(
                    torch.eye(*value.shape) if constant.value == "eye" else torch.full_like(value, constant.value)
                )
    if layout.name.startswith("simple_vit"):
        tensors["pos_embed"] = sincos_table(config.grid_size, config.embed_dim)
    return tensors


def hints_of(config: ViTConfig) -> dict[str, Any]:
    """Return what a user says about a network beside its weights."""
    return {name: getattr(config, name) for name in (*_TOLD, *_POOLING)}
