"""Networks by name: timm's names to configs to models with random weights.

The names themselves are data, in `variant_table.py`, `rope_variant_table.py`, `rel_pos_variant_table.py` and
`not_plain.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models.backbone import Backbone
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.not_plain import NOT_PLAIN
from vit_finetune.models.rel_pos_variant_table import REL_POS_VARIANTS
from vit_finetune.models.rel_pos_vit import RelPosViT, RelPosViTConfig
from vit_finetune.models.rope_config import RopeViTConfig
from vit_finetune.models.rope_variant_table import ROPE_VARIANTS
from vit_finetune.models.rope_vit import RopeViT
from vit_finetune.models.variant_table import VARIANTS
from vit_finetune.models.vit import VisionTransformer
from vit_finetune.models.vit_config import ViTConfig

__all__ = ["NOT_PLAIN", "build_model", "create_model", "list_models", "variant_config"]

# Patch size and image size in pixels, number of classes, a size and a style (fields of the family's config).
Row: TypeAlias = tuple[int, int | tuple[int, int], int, dict[str, Any], dict[str, Any]]


_FAMILIES: tuple[tuple[Mapping[str, Row], type[NetworkConfig]], ...] = (
    (VARIANTS, ViTConfig),
    (ROPE_VARIANTS, RopeViTConfig),
    (REL_POS_VARIANTS, RelPosViTConfig),
)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that `create_model` knows, sorted.

    Args:
        pattern: with `*` and `?` as in file names; "*dinov2*" finds the DINOv2 family.
    """
    return sorted(name for table, _ in _FAMILIES for name in table if fnmatchcase(name, pattern))


def variant_config(name: str) -> NetworkConfig:
    """Return the config that timm registers under a name: a `ViTConfig`, or for other positions its kin.

    Args:
        name: timm's architecture name, without a pretrained tag.

    Raises:
        RequestError: the name is unknown, carries a tag, or belongs to a relative that isn't built here.
    """
    if name in NOT_PLAIN:
        raise RequestError(
            f"{name} is not among the networks here: {NOT_PLAIN[name]}; list_models() has the names that can be built"
        )
    for table, kind in _FAMILIES:
        if name in table:
            patch_size, img_size, num_classes, size, style = table[name]
            own = {"patch_size": patch_size, "img_size": img_size, "num_classes": num_classes}
            return kind.from_mapping({**own, **size, **style})
    known = list_models()
    base, _, tag = name.partition(".")
    if tag and base in known:
        raise RequestError(f"{name!r} names weights, not an architecture: create {base!r} and load 'timm:{name}'")
    raise RequestError(f"unknown model {name!r}{did_you_mean(name, known) or '; list_models() has the names'}")


def build_model(config: NetworkConfig) -> Backbone:
    """Build a network; with `weight_init="skip"` without a moment spent on values, which are then whatever memory held.

    On the meta device, which has no values, none are drawn either: torch draws some by importing its compiler.

    Args:
        config: the network, of any family.
    """
    device = torch.get_default_device()
    if config.weight_init != "skip" and device.type != "meta":
        return _construct(config)
    with torch.device("meta"):
        model = _construct(config.updated({"weight_init": "skip"}))
    model.config = config
    return model if device.type == "meta" else model.to_empty(device=device)


def _construct(config: NetworkConfig) -> Backbone:
    """Build the network of the config's family."""
    if isinstance(config, RopeViTConfig):
        return RopeViT(config)
    if isinstance(config, RelPosViTConfig):
        return RelPosViT(config)
    assert isinstance(config, ViTConfig)
    return VisionTransformer(config)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    **overrides: Any,
) -> Backbone:
    """Build a network by name, with random weights.

    Args:
        name: one of `list_models()`, timm's spelling.
        num_classes: outputs of the head, 0 for none; None for what timm registers.
        img_size: pixels, a side or (height, width); None for what timm registers.
        in_chans: image channels.
        overrides: any other fields of the name's config, such as `depth=2` or `drop_path_rate=0.1`.

    Returns:
        The network in training mode, on torch's default device and in its default dtype; `.name` holds `name`.

    Raises:
        RequestError: an unknown name (with the closest ones), an unknown field, or a value that can't be built.
    """
    asked = {"num_classes": num_classes, "img_size": img_size}
    fields = {key: value for key, value in asked.items() if value is not None} | {"in_chans": in_chans} | overrides
    model = build_model(variant_config(name).updated(fields))
    model.name = name
    return model
