"""Whether a format has words for a network, and the changes that make it fit without changing what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.rewrites import WIDENINGS
from vit_finetune.weights.rules import Format, structure


def widened(
    tensors: Mapping[str, Lazy], layout: Format, config: ViTConfig
) -> tuple[dict[str, Lazy], ViTConfig, tuple[str, ...]]:
    """Fit a network to a format.

    Args:
        tensors: under timm's names.
        layout: the format wanted.
        config: the network.

    Returns:
        Tensors and network after the changes that were needed, and those changes in words.

    Raises:
        NotRepresentable: an option is left that the format has no words for; all of them are listed.
    """
    values, notes, problems = dict(tensors), [], []
    for name in structure():
        allowed = layout.allowed(name)
        value = _value(config, name)
        if not allowed or value in allowed:
            continue
        change = next((w for w in WIDENINGS if w.field == name and w.value in allowed and w.applies(config)), None)
        if change is None:
            problems.append(f"{name}={value!r} (it holds {' or '.join(map(repr, allowed))})")
            continue
        values = change.change(values, config)
        config = config.updated({change.field: change.value})
        notes.append(change.words)
    if not problems and layout.check and (reason := layout.check(config)):
        problems.append(reason)
    if problems:
        way_out = (
            "Convert it to timm, or to another format that has"
            if layout.rules
            else "No conversion is needed to use it here: from_pretrained and finetune read the file as it is"
        )
        raise NotRepresentable(f"{layout.name} has no words for this network: {'; '.join(problems)}. {way_out}")
    return values, config, tuple(notes)


def _value(config: ViTConfig, name: str) -> Any:
    """Return an option as the network acts on it: where the final norm is follows from two fields."""
    return config.final_norm and config.norm_after_pool if name == "fc_norm" else getattr(config, name)
