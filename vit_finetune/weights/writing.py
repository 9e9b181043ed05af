"""From our names to a file's: the rules read from right to left.

Works on names and shapes; what it returns is a `Plan`, not yet computed. Only tensors that have to be a constant are
looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.weights.axes import axis_sizes, factors_in_words, joined, rearranged, stacked, times
from vit_finetune.weights.constants import is_constant, stand_ins
from vit_finetune.weights.lazy import Lazy, Plan, combine
from vit_finetune.weights.representable import widened
from vit_finetune.weights.rules import Format, Rule, fill, reason_for, template, two_sides


def plan_from_timm(
    tensors: Mapping[str, Lazy],
    layout: Format,
    config: NetworkConfig,
    *,
    names: Mapping[str, str] | None = None,
    aside: Mapping[str, Lazy] | None = None,
    prefix: str = "",
) -> Plan:
    """Say how our tensors become a file's.

    Args:
        tensors: under timm's names.
        layout: the format wanted.
        config: the network they are of.
        names: spellings of an earlier file of that format, which win over the format's own.
        aside: what an earlier file of that format held beside the network, under the rules' spelling.
        prefix: what stands before every name of the network, where the library itself writes nothing there.

    Raises:
        NotRepresentable: the format has no words for the network.
    """
    values, config, notes = widened(tensors, layout, config)
    if not layout.rules:
        return Plan(values, fields=config.to_mapping(), notes=notes)
    for rewrite in reversed(layout.rewrites):
        values = rewrite.write(values, config)
    names = names or {}
    written: dict[str, Lazy] = {}
    left: list[str] = []
    done: set[str] = set()
    for name in values:
        if name in done:
            continue
        if found := _rule_for(name, values, layout, config, names):
            rule, targets, sources = found
            done.update(targets)
            written.update(_written(rule, [values[target] for target in targets], sources, config.to_mapping()))
        elif not is_constant(name, values, layout, config):
            left.append(name)
    if left:
        raise NotRepresentable(_no_place(left, layout))
    written = {**(aside or {}), **written}
    for constant in layout.theirs_only:
        if constant.when is None or constant.when(config):
            written |= {key: value for key, value in stand_ins(constant, values).items() if key not in written}
    return Plan(
        _spelled(written, (layout.prefix(config) if layout.prefix else "") or prefix, names),
        fields=config.to_mapping(),
        notes=notes,
    )


_Found = tuple[Rule, tuple[str, ...], tuple[str | None, ...]]


def _rule_for(
    name: str, values: Mapping[str, Lazy], layout: Format, config: NetworkConfig, names: Mapping[str, str]
) -> _Found | None:
    """Return the rule that writes a tensor, with its names on both sides; None where there is none."""
    fitting: list[_Found] = []
    for rule in layout.rules:
        match = next((m for target in rule.targets if (m := template(target).fullmatch(name))), None)
        if match is None:
            continue
        targets = tuple(fill(target, match.groupdict()) for target in rule.targets)
        sources = tuple(None if text is None else fill(text, match.groupdict()) for text in rule.sources)
        if not all(target in values for target in targets):
            continue
        if all(_known(text, names) for text in sources if text is not None):
            return rule, targets, sources  # as the earlier file had it
        if rule.when is None or rule.when(config):
            fitting.append((rule, targets, sources))
    return fitting[0] if fitting else None


def _known(name: str, names: Mapping[str, str]) -> str | None:
    """Return an earlier file's spelling of a name; in a file without a prefix everything was at the top."""
    return names.get(name) or names.get(name.removeprefix("/"))


def _written(
    rule: Rule, values: Sequence[Lazy], sources: tuple[str | None, ...], fields: Mapping[str, Any]
) -> dict[str, Lazy]:
    """Undo what reading does, step by step, last step first."""
    whole = values[0] if len(values) == 1 else combine(joined, values, "join rows")
    if rule.scale is not None:
        factors = [1 / factor for factor in rule.scale(fields)]
        whole = combine(times(factors), [whole], factors_in_words(factors))
    stacked = isinstance(rule.theirs, tuple)
    if rule.pattern is not None:
        left, right = (side.strip() for side in rule.pattern.split("->"))
        sizes = axis_sizes(right, fields)
        if stacked:
            sizes[left.split()[0]] = len(sources)
        back, label = f"{right} -> {left}", ", ".join(text for text in sources if text is not None)
        whole = combine(lambda value: rearranged(value, back, sizes, label), [whole], back)
    if not stacked:
        return {text: whole for text in sources if text is not None}
    parts = {k: combine(_item(k), [whole], f"part {k}") for k in range(len(sources))}
    for k, text in enumerate(sources):
        if text is None and parts[k].compute().count_nonzero():
            raise NotRepresentable(
                f"part {k} of {', '.join(whole.sources)} is not zero, and the file has no place for it beside "
                f"{', '.join(text for text in sources if text is not None)}"
            )
    return {text: parts[k] for k, text in enumerate(sources) if text is not None}


def _item(k: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[k]


def _no_place(left: list[str], layout: Format) -> str:
    """Say why names of ours have no place in a format."""
    reasons = {name: reason_for(name, layout.unplaced) for name in left}
    told = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    known = [target for rule in layout.rules for target in rule.targets]
    unexplained = [name for name, reason in reasons.items() if not reason]
    text = "; ".join([*told, two_sides(unexplained, [], "without a rule", "")] if unexplained else told)
    return f"{layout.name} has no place for {text}" + (
        f" (it knows {', '.join(known[:4])}, ...)" if unexplained else ""
    )


def _spelled(written: Mapping[str, Lazy], prefix: str, names: Mapping[str, str]) -> dict[str, Lazy]:
    """Return the tensors under the file's names; layers that had one name in an earlier file become one tensor."""
    groups: dict[str, list[Lazy]] = {}
    for name, value in written.items():
        default = name.removeprefix("/") if name.startswith("/") else prefix + name
        groups.setdefault(_known(name, names) or default, []).append(value)
    return {
        name: values[0] if len(values) == 1 else combine(stacked, values, "stack layers")
        for name, values in groups.items()
    }
