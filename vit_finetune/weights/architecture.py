"""Which network a source's weights are for: as named, as the source states it, or as the shapes tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import build_model, variant_config
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.conversion import Converted


def stated_config(checkpoint: Checkpoint) -> NetworkConfig | None:
    """Return the network that a source says it is made for, or None where it doesn't say.

    Raises:
        RequestError: it says something that can't be built.
    """
    if checkpoint.architecture is not None:
        return variant_config(checkpoint.architecture).updated(checkpoint.model_args)
    return ViTConfig.from_mapping(checkpoint.model_args) if checkpoint.model_args else None


def names_of(config: NetworkConfig) -> frozenset[str]:
    """Return the names of a network's tensors, its head aside."""
    with torch.device("meta"):
        return frozenset(build_model(config.updated({"num_classes": 0})).state_dict())


def stated_grid(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the patch grid that the source's own image size gives, or None where it doesn't say.

    Args:
        checkpoint: the source.
        tensors: its tensors under timm's names.
    """
    weight = tensors.get("patch_embed.proj.weight")
    try:
        config = stated_config(checkpoint)
    except RequestError:
        return None  # a network that isn't ours: the tensors themselves will say what doesn't fit
    if config is None or weight is None or weight.ndim != 4:
        return None
    return config.img_size[0] // int(weight.shape[2]), config.img_size[1] // int(weight.shape[3])


def reconciled(
    config: NetworkConfig, told: Mapping[str, Any], usual: Mapping[str, Any], *, given: Collection[str], built: bool
) -> tuple[NetworkConfig, list[str]]:
    """Settle what a named architecture and its weights' own configuration say differently, where shapes don't show it.

    Args:
        config: as the architecture is named.
        told: `ViTConfig` fields that the source's configuration says.
        usual: the fields that files of its format have by custom.
        given: fields that the caller decided, which stand.
        built: the network exists already, so that nothing of it can change.

    Returns:
        The network, with the source's activation, and a sentence for each difference.

    Raises:
        RequestError: the source has another number of heads.
    """
    notes = []
    for key in ("num_heads", "act_layer", "norm_eps"):
        theirs, ours = told.get(key, usual.get(key)), getattr(config, key, None)
        if theirs is None or theirs == ours or key in given:
            continue
        if key == "num_heads":
            raise RequestError(
                f"the source says num_heads={theirs}, the architecture has {ours}: name the one that it is of, or say "
                "num_heads=... yourself"
            )
        if key == "act_layer" and key in told and not built:
            config = config.updated({key: theirs})
            notes.append(f"{key}={theirs!r} is the source's; the architecture as named has {ours!r}")
            continue
        notes.append(f"{key}={ours!r} is the network's; the source was made with {theirs!r}, as {key}={theirs!r} gives")
    return config, notes


def source_config(
    checkpoint: Checkpoint, converted: Converted, *, name: str | None, known: Mapping[str, Any]
) -> NetworkConfig:
    """Return the network that a source's weights are for.

    Args:
        checkpoint: the source.
        converted: its tensors under timm's names, and what its format tells.
        name: the architecture as the user names it; wins over what the source states.
        known: fields that the user gives; used where only shapes are left to tell.

    Raises:
        RequestError: an unknown name, or nothing tells the architecture.
    """
    if name is not None and name != checkpoint.architecture:
        return variant_config(name)
    stated = stated_config(checkpoint)
    if stated is not None:
        return stated
    try:
        return converted.family.from_state_dict(converted.tensors, known={**known, **converted.fields})
    except RequestError as error:
        raise RequestError(f"the architecture is not stated: give name=...; {error}") from error
