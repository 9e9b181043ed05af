"""What a caller says about a network, in whichever of four ways, as `ViTConfig` fields.

A `ViTConfig`; an architecture's name; the configuration of the library that wrote the weights; or single hints, whose
names are `ViTConfig` fields or the short words `eps`, `act`, `pool` and `architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models.variants import variant_config
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rules import Format
from vit_finetune.weights.sidecars import read_timm_config

Hints = ViTConfig | Mapping[str, Any] | str | None

_SHORT = {"eps": "norm_eps", "act": "act_layer", "pool": "global_pool"}
_ARCHITECTURE = "architecture"
# Keys that only a library's own configuration has.
_MARKS = ("model_type", "architectures", "vision_cfg", "model_cfg", "vision_config")


def known_fields(config: Hints, layout: Format) -> dict[str, Any]:
    """Return the `ViTConfig` fields that a caller gives.

    Args:
        config: a network, an architecture's name, a library's configuration, or hints.
        layout: the format of the weights, which reads its library's configuration.

    Raises:
        RequestError: an unknown word, or a configuration that the format can't read.
    """
    if config is None:
        return {}
    if isinstance(config, ViTConfig):
        return config.to_mapping()
    if isinstance(config, str):
        return plain_variant(config).to_mapping()
    if any(mark in config for mark in _MARKS):
        if layout.config_from is None:
            raise RequestError(
                f"{layout.name} files have no configuration that can be read; give hints such as num_heads"
            )
        return layout.config_from(config)
    if "model_args" in config or "pretrained_cfg" in config:
        told = read_timm_config(config, "config")
        return plain_variant(str(told.architecture)).updated(told.model_args).to_mapping()
    return _hints(config)


def plain_variant(name: str) -> ViTConfig:
    """Return the network of a registered name.

    Raises:
        NotRepresentable: it is no plain ViT, and these conversions are about plain ViTs.
        RequestError: there is no such name.
    """
    config = variant_config(name)
    if not isinstance(config, ViTConfig):
        raise NotRepresentable(f"{name} is no plain ViT; its weights stay in timm's layout")
    return config


def _hints(words: Mapping[str, Any]) -> dict[str, Any]:
    allowed = [*_SHORT, _ARCHITECTURE, *(item.name for item in fields(ViTConfig))]
    for word in words:
        if word not in allowed:
            raise RequestError(
                f"a ViT has no {word!r}{did_you_mean(word, allowed)}; say num_heads, eps, act, pool, img_size, "
                "patch_size, architecture or another field of ViTConfig"
            )
    found = plain_variant(words[_ARCHITECTURE]).to_mapping() if _ARCHITECTURE in words else {}
    return found | {_SHORT.get(word, word): value for word, value in words.items() if word != _ARCHITECTURE}
