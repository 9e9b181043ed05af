"""Networks by name: timm's names to configs to models with random weights.

The names themselves are data, in `variant_table.py` and `not_plain.py`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models.not_plain import NOT_PLAIN
from vit_finetune.models.variant_table import VARIANTS
from vit_finetune.models.vit import VisionTransformer
from vit_finetune.models.vit_config import ViTConfig

__all__ = ["NOT_PLAIN", "create_model", "list_models", "variant_config"]


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that `create_model` knows, sorted.

    Args:
        pattern: with `*` and `?` as in file names; "*dinov2*" finds the DINOv2 family.
    """
    return sorted(name for name in VARIANTS if fnmatchcase(name, pattern))


def variant_config(name: str) -> ViTConfig:
    """Return the config that timm registers under a name.

    Args:
        name: timm's architecture name, without a pretrained tag.

    Raises:
        RequestError: the name is unknown, carries a tag, or belongs to a relative of the plain ViT.
    """
    if name in NOT_PLAIN:
        raise RequestError(
            f"{name} is not a plain ViT: {NOT_PLAIN[name]}; list_models() has the names that can be built"
        )
    if name not in VARIANTS:
        base, _, tag = name.partition(".")
        if tag and base in VARIANTS:
            raise RequestError(f"{name!r} names weights, not an architecture: create {base!r} and load 'timm:{name}'")
        raise RequestError(f"unknown model {name!r}{did_you_mean(name, VARIANTS) or '; list_models() has the names'}")
    patch_size, img_size, num_classes, size, style = VARIANTS[name]
    own = {"patch_size": patch_size, "img_size": img_size, "num_classes": num_classes}
    return ViTConfig.from_mapping({**own, **size, **style})


def build_model(config: ViTConfig) -> VisionTransformer:
    """Build a network; with `weight_init="skip"` without a moment spent on values, which are then whatever memory held.

    Args:
        config: the network.
    """
    device = torch.get_default_device()
    if config.weight_init != "skip" or device.type == "meta":
        return VisionTransformer(config)
    with torch.device("meta"):
        model = VisionTransformer(config)
    return model.to_empty(device=device)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    **overrides: Any,
) -> VisionTransformer:
    """Build a network by name, with random weights.

    Args:
        name: one of `list_models()`, timm's spelling.
        num_classes: outputs of the head, 0 for none; None for what timm registers.
        img_size: pixels, a side or (height, width); None for what timm registers.
        in_chans: image channels.
        overrides: any other ViTConfig fields, such as `depth=2` or `drop_path_rate=0.1`.

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
