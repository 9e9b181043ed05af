"""Whole state dicts from one layout to the other, by the rules of a `Format`.

The work is planned in `reading.py` and `writing.py`; here it is done, in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.adapt import HEAD_PARTS
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.formats import detect_format, format_named
from vit_finetune.weights.lazy import computed, lazily
from vit_finetune.weights.reading import plan_to_timm
from vit_finetune.weights.rules import Format
from vit_finetune.weights.writing import plan_from_timm


@dataclass(frozen=True)
class Remainder:
    """What a file holds beside its network, so that the way back gives the same file.

    Attributes:
        names: the rules' spelling of the file's names to the file's own.
        aside: tensors that have no place in our layout, under the file's names.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    aside: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """Tensors under our names, and what had no place among them.

    Attributes:
        tensors: timm's name to tensor.
        dropped: the file's name to the reason.
        fields: what format, configuration and names tell of the network's config.
        remainder: what `from_timm` takes to give the same file again.
        notes: rewrites that were applied, one sentence each.
        family: the config of the network.
        told: the fields that the source's library says in its configuration.
        usual: the fields that all files of the format have, as far as nothing else tells them.
    """

    tensors: dict[str, Tensor]
    dropped: dict[str, str]
    fields: dict[str, Any] = field(default_factory=dict)
    remainder: Remainder = field(default_factory=Remainder)
    notes: tuple[str, ...] = ()
    family: type[NetworkConfig] = ViTConfig
    told: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)


def converted_from(
    checkpoint: Checkpoint,
    known: Mapping[str, Any] | None = None,
    *,
    source: str = "auto",
    wanted: Collection[str] = (),
) -> Converted:
    """Translate what a source holds into timm's names and shapes.

    Args:
        checkpoint: the source.
        known: fields of its config that are known otherwise; they win over what the source's library says.
        source: the format's name; "auto" detects it.
        wanted: names of the network that is to be loaded, its head aside. A source of just these is timm's, whatever
            else it looks like: the families beyond the plain ViT share names with other layouts.

    Raises:
        RequestError: as `detect_format` and `to_timm`.
    """
    if source == "auto":
        source = "timm" if has_names(checkpoint.tensors, wanted) else detect_format(checkpoint.tensors)
    layout = format_named(source)
    told = layout.config_from(checkpoint.library) if layout.config_from and checkpoint.library else {}
    converted = to_timm(checkpoint.tensors, layout, {**told, **(known or {})})
    return replace(converted, told=told, usual=layout.fixed())


def has_names(tensors: Iterable[str], wanted: Collection[str]) -> bool:
    """Say whether a source has just the names of a network.

    Args:
        tensors: names of the source's tensors; the head's don't count.
        wanted: names of the network, its head aside.
    """
    return {name for name in tensors if not name.startswith(HEAD_PARTS)} == set(wanted)


def to_timm(tensors: Mapping[str, Tensor], layout: Format, known: Mapping[str, Any] | None = None) -> Converted:
    """Translate a state dict into timm's names and shapes.

    Args:
        tensors: the file's tensors.
        layout: their format.
        known: fields of its config; needed only where a pattern needs an axis that shapes don't tell.

    Raises:
        NotRepresentable: the file holds what no network of ours can do.
        RequestError: a name fits no rule, a tensor that belongs to a group is missing, or a field is needed.
    """
    plan = plan_to_timm(lazily(tensors), layout, known)
    remainder = Remainder(plan.names, computed(plan.aside))
    family = layout.family(plan.tensors)
    return Converted(computed(plan.tensors), plan.dropped, plan.fields, remainder, plan.notes, family)


def from_timm(
    tensors: Mapping[str, Tensor], layout: Format, config: NetworkConfig, *, remainder: Remainder | None = None
) -> dict[str, Tensor]:
    """Translate a state dict of ours into a format's names and shapes.

    Args:
        tensors: under timm's names.
        layout: the format wanted.
        config: the network they are of.
        remainder: what reading a file of that format left, to get that file again.

    Raises:
        NotRepresentable: the format has no words for the network; the message says for what, and what could be done.
    """
    remainder = remainder or Remainder()
    plan = plan_from_timm(lazily(tensors), layout, config, names=remainder.names)
    return computed(plan.tensors) | dict(remainder.aside)
