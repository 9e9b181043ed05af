"""What a caller says about a network, in whichever of four ways, as fields of its config.

A config; an architecture's name; the configuration of the library that wrote the weights; or single hints, whose
names are the config's fields or the short words `eps`, `act`, `pool` and `architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import variant_config
from vit_finetune.weights.rules import Format
from vit_finetune.weights.sidecars import read_timm_config

Hints = NetworkConfig | Mapping[str, Any] | str | None

_SHORT = {"eps": "norm_eps", "act": "act_layer", "pool": "global_pool"}
_ARCHITECTURE = "architecture"
# Keys that only a library's own configuration has.
_MARKS = ("model_type", "architectures", "vision_cfg", "model_cfg", "vision_config")
_TIMM_MARKS = ("model_args", "pretrained_cfg")


def known_fields(config: Hints, layout: Format) -> dict[str, Any]:
    """Return the fields of a network's config that a caller gives.

    Args:
        config: a network, an architecture's name, a library's configuration, or hints.
        layout: the format of the weights, which reads its library's configuration.

    Raises:
        RequestError: an unknown word, or a configuration that the format can't read.
    """
    if config is None:
        return {}
    if (network := named_network(config)) is not None:
        return network.to_mapping() | ({} if isinstance(config, NetworkConfig | str) else _hints(config, layout))
    assert isinstance(config, Mapping)
    if any(mark in config for mark in _MARKS):
        if layout.config_from is None:
            raise RequestError(
                f"{layout.name} files have no configuration that can be read; give hints such as num_heads"
            )
        return layout.config_from(config)
    return _hints(config, layout)


def named_network(config: Hints) -> NetworkConfig | None:
    """Return the whole network that a caller names, before single hints change it; None where they don't name one.

    Args:
        config: as for `known_fields`.

    Raises:
        RequestError: there is no such architecture.
    """
    if config is None or isinstance(config, NetworkConfig):
        return config
    if isinstance(config, str):
        return variant_config(config)
    if any(mark in config for mark in _TIMM_MARKS):
        told = read_timm_config(config, "config")
        return variant_config(str(told.architecture)).updated(told.model_args)
    return variant_config(config[_ARCHITECTURE]) if _ARCHITECTURE in config else None


def _hints(words: Mapping[str, Any], layout: Format) -> dict[str, Any]:
    if any(mark in words for mark in _TIMM_MARKS):
        return {}  # timm's configuration has no hints beside the network that it says
    names = dict.fromkeys(item.name for family in layout.families for item in fields(family))  # type: ignore[arg-type]
    allowed = [*_SHORT, _ARCHITECTURE, *names]
    for word in words:
        if word not in allowed:
            kinds = " or ".join(family.__name__ for family in layout.families)
            raise RequestError(
                f"a ViT has no {word!r}{did_you_mean(word, allowed)}; say num_heads, eps, act, pool, img_size, "
                f"patch_size, architecture or another field of {kinds}"
            )
    return {_SHORT.get(word, word): value for word, value in words.items() if word != _ARCHITECTURE}
