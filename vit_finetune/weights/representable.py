"""Whether a format has words for a network, and the changes that make it fit without changing what it computes."""

from __future__ import annotations

from collections.abc import Mapping

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.rewrites import WIDENINGS
from vit_finetune.weights.rules import Format, structure


def widened(
    tensors: Mapping[str, Lazy], layout: Format, config: NetworkConfig
) -> tuple[dict[str, Lazy], NetworkConfig, tuple[str, ...]]:
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
    _demand_family(layout, config)
    values, notes, problems = dict(tensors), [], []
    for name in structure(type(config)):
        allowed = layout.allowed(name)
        value = config.acting(name)
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


def _demand_family(layout: Format, config: NetworkConfig) -> None:
    if type(config) not in layout.families:
        raise NotRepresentable(
            f"{layout.name} has no words for this network: it is a {config.KIND}, and {layout.name} is for "
            f"{layout.kinds}. "
            "Convert it to timm, which has all of them, or to a format of its kind"
        )
