"""What a conversion keeps of the file it read, so that converting back gives that file again.

Our layout has no place for some tensors of others (a mask token, a text tower, a head of another kind) and no memory of
their spellings (chunks of blocks, prefixes). Both lie beside the result: the tensors in `set_aside.safetensors`, the
spellings in `conversion.json`. Here they are read, and put where they belong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.weights.lazy import Lazy, Plan, cast, lazily
from vit_finetune.weights.readers import read_json, read_safetensors
from vit_finetune.weights.rules import Format
from vit_finetune.weights.writing import plan_from_timm

if TYPE_CHECKING:
    import torch

REPORT_NAME = "conversion.json"
ASIDE_NAME = "set_aside.safetensors"
# What a configuration of transformers says about a head that our network doesn't have.
_HEAD_WORDS = ("architectures", "id2label", "label2id")
_THEIR_HEAD = "/classifier."


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The file that weights come from, as far as it has no place in our layout.

    Attributes:
        format: its format.
        names: the rules' spelling of its names to its own, of what was converted or set aside.
        prefix: what stood before every name of the network.
        config: its library's configuration.
        aside: the tensors that had no place, under its own names.
    """

    format: str
    names: Mapping[str, str]
    prefix: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    aside: Mapping[str, Lazy] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Return what `conversion.json` holds of it, as JSON values."""
        words = {key: self.config[key] for key in ("model_type", *_HEAD_WORDS) if key in self.config}
        return {"format": self.format, "names": dict(self.names), "prefix": self.prefix, "config": words}

    def spelled(self, *, head: bool, dtype: torch.dtype | None) -> dict[str, Lazy]:
        """Return what was set aside under the rules' spelling, without its head or in another type where asked."""
        found = {name: self.aside[own] for name, own in self.names.items() if own in self.aside}
        return {
            name: value if dtype is None else cast(value, dtype)
            for name, value in found.items()
            if head or not name.startswith(_THEIR_HEAD)
        }


def earlier_of(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Earlier | None, tuple[str, ...]]:
    """Read what a conversion left beside its result.

    Args:
        folder: the result.
        tensors: its weights, to see that they are still those.

    Returns:
        The file that was converted, or None; and notes on what can't be used.

    Raises:
        RequestError: one of the two files is damaged.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        return None, ()
    report = read_json(path)
    try:
        rows = {str(row["target"]): tuple(row["shape"]) for row in report["tensors"]}
        told = report["way_back"]
        if told is None:
            return None, ()
        earlier = Earlier(
            format=str(told["format"]),
            names=dict(told["names"]),
            prefix=str(told["prefix"]),
            config=dict(told["config"]),
        )
        wanted = set(report["set_aside"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path} is not what a conversion of this version wrote ({type(error).__name__}: {error}); remove it to "
            "read the weights without it"
        ) from error
    if rows != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        return None, (f"{path.name} is about other tensors than the weights beside it and was left aside",)
    kept = read_safetensors(folder / ASIDE_NAME)[0] if (folder / ASIDE_NAME).is_file() else {}
    if missing := sorted(wanted - kept.keys()):
        return None, (f"{ASIDE_NAME} lacks {', '.join(missing[:4])}, so that the way back is not whole",)
    return replace(earlier, aside=lazily({name: kept[name] for name in wanted})), ()


def plan_back(
    ours: Mapping[str, Lazy],
    target: Format,
    config: NetworkConfig,
    earlier: Earlier,
    *,
    same_names: bool,
    head: bool,
    dtype: torch.dtype | None,
) -> Plan:
    """Say how our tensors become a file like the earlier one, with what was set aside of it.

    Args:
        ours: under timm's names.
        target: the earlier file's format.
        config: the network they are of.
        earlier: the file.
        same_names: spell them as that file did, where they are just its tensors; else as the library does.
        head: put a head of the library's own kind back, too.
        dtype: of what was set aside; None keeps its own.

    Raises:
        NotRepresentable: the format has no words for the network.
    """
    aside = earlier.spelled(head=head, dtype=dtype)
    if same_names:
        plan = plan_from_timm(ours, target, config, names=earlier.names, aside=aside)
        if plan.tensors.keys() == set(earlier.names.values()):
            return plan
    # What lies at the top of the file needs a prefix before the rest, or the library takes the file for a bare network.
    prefix = earlier.prefix if any(name.startswith("/") for name in aside) else ""
    return plan_from_timm(ours, target, config, aside=aside, prefix=prefix)


def head_words(earlier: Earlier | None, written: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration says beside the network: the class and labels of a head that was put back.

    Args:
        earlier: the file that had them.
        written: the configuration of the network alone.
        names: of the tensors that are written.
    """
    if earlier is None or earlier.config.get("model_type") != written.get("model_type"):
        return {}
    heads = [own for name, own in earlier.names.items() if name.startswith(_THEIR_HEAD) and own in earlier.aside]
    if not heads or not all(own in names for own in heads):
        return {}
    return {key: earlier.config[key] for key in _HEAD_WORDS if key in earlier.config}
