"""From a file's names to ours: every name is consumed once, by a rule or with a reason, or there is one error.

Works on names and shapes; what it returns is a `Plan`, not yet computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.weights.axes import axis_sizes, factors_in_words, factors_of, rearranged, stacked, times
from vit_finetune.weights.constants import stand_ins
from vit_finetune.weights.lazy import Lazy, Plan, combine
from vit_finetune.weights.rules import Format, Rule, fill, reason_for, template, two_sides


def plan_to_timm(tensors: Mapping[str, Lazy], layout: Format, known: Mapping[str, Any] | None = None) -> Plan:
    """Say how a file's tensors become ours; arguments, result and errors as for `to_timm`."""
    if not layout.rules:
        return Plan(dict(tensors), fields={**layout.fixed(), **(known or {})})
    prefix = next((p for p in layout.prefixes if any(name.startswith(p) for name in tensors)), "")
    bare, names = _canonical(tensors, layout, prefix)
    shapes = {name: value.shape for name, value in bare.items()}
    fields = {**layout.fixed(), **(known or {})}
    fields = {**fields, **(layout.told(shapes, fields) if layout.told else {}), **(known or {})}
    groups, plan = _sorted_out(
        bare, Plan({}, fields=fields, names=names, prefix=prefix), layout, has_prefix=bool(prefix)
    )
    for targets, (rule, parts) in groups.items():
        values = [bare[parts[k]] if k in parts else None for k in range(len(rule.sources))]
        plan.tensors.update(zip(targets, _read(rule, values, targets, fields), strict=True))
    if any(reason_for(name, layout.before_head) for name in bare):  # a head on top of what is dropped
        _drop_head(plan)
    for constant in layout.ours_only:
        plan.tensors.update(stand_ins(constant, plan.tensors))
    ours, notes = plan.tensors, []
    for rewrite in layout.rewrites:
        before, ours = ours, rewrite.read(ours, fields)
        if rewrite.aside and (gone := before.keys() - ours.keys()):
            sources = {source: tensors[source] for name in gone for source in before[name].sources}
            plan.aside.update(sources)
            plan.dropped.update(dict.fromkeys(sources, rewrite.aside))
        elif rewrite.changes(before, ours):
            notes.append(rewrite.words)
    return replace(plan, tensors=ours, notes=tuple(notes))


def _drop_head(plan: Plan) -> None:
    for name in [name for name in plan.tensors if name.startswith("head.")]:
        plan.dropped.update(dict.fromkeys(plan.tensors.pop(name).sources, "the layers before it have no place here"))


def _canonical(tensors: Mapping[str, Lazy], layout: Format, prefix: str) -> tuple[dict[str, Lazy], dict[str, str]]:
    """Return the tensors under the rules' spelling, and that spelling to the file's."""
    bare: dict[str, Lazy] = {}
    names: dict[str, str] = {}
    for original, value in tensors.items():
        name = original.removeprefix(prefix) if original.startswith(prefix) else f"/{original}"
        name = _respelled(name, layout.aliases)
        pieces = {name: value}
        if layout.stacked and (found := template(layout.stacked[0]).fullmatch(name)):
            pieces = {
                _respelled(fill(layout.stacked[1], {**found.groupdict(), "i": str(i)}), layout.aliases): combine(
                    _item(i), [value], f"layer {i}"
                )
                for i in range(value.shape[0])
            }
        for spelling, piece in pieces.items():
            if spelling in bare:
                raise RequestError(f"the file holds two tensors for {spelling}: {names[spelling]}, {original}")
            bare[spelling], names[spelling] = piece, original
    return bare, names


def _respelled(name: str, aliases: Mapping[str, str]) -> str:
    for other, ours in aliases.items():
        if found := template(other).fullmatch(name):
            return fill(ours, found.groupdict())
    return name


def _item(i: int) -> Callable[[Tensor], Tensor]:
    return lambda value: value[i]


_LISTED = 8
_Groups = dict[tuple[str, ...], tuple[Rule, dict[int, str]]]


def _sorted_out(bare: Mapping[str, Lazy], plan: Plan, layout: Format, *, has_prefix: bool) -> tuple[_Groups, Plan]:
    """Find for every name its rule, or the reason why it has none, which goes into the plan."""
    groups: _Groups = {}
    names, unknown, integers = plan.names, [], []
    for name, value in bare.items():
        if (reason := reason_for(name, layout.before_head)) and plan.fields.get("num_classes") == 0:
            plan.dropped[names[name]] = reason
            continue
        if reason := reason or reason_for(name, layout.refuse):
            raise NotRepresentable(f"{names[name]}: {reason}")
        if found := _match(layout, name, bare, has_prefix=has_prefix):
            targets, rule, position = found
            first, parts = groups.setdefault(targets, (rule, {}))
            if first != rule or position in parts:
                others = ", ".join(names[part] for part in parts.values())
                raise RequestError(f"the file holds two tensors for {', '.join(targets)}: {others}, {names[name]}")
            parts[position] = name
            if not value.meta.is_floating_point():
                integers.append(f"{names[name]} ({str(value.meta.dtype).removeprefix('torch.')})")
        elif reason := reason_for(name, layout.aside):
            plan.aside[names[name]] = value
            plan.dropped[names[name]] = reason
        elif reason := reason_for(name, layout.drop):
            plan.dropped[names[name]] = reason
        else:
            unknown.append(names[name])
    incomplete = [
        f"{', '.join(targets)} (found only {', '.join(names[part] for part in parts.values())})"
        for targets, (rule, parts) in groups.items()
        if any(source is not None and k not in parts for k, source in enumerate(rule.sources))
    ]
    if unknown or incomplete:
        sides = two_sides(unknown, incomplete, "without a rule", "incomplete")
        raise RequestError(f"the {layout.name} names don't add up; {sides}")
    if integers:  # here, as a rule may join them with others to what has a fraction
        raise RequestError(f"{len(integers)} not of a floating-point type: {', '.join(integers[:_LISTED])}")
    return groups, plan


def _match(
    layout: Format, name: str, names: Collection[str], *, has_prefix: bool
) -> tuple[tuple[str, ...], Rule, int] | None:
    """Return our names, the rule, and the position among the rule's names; None where no rule fits.

    Of several rules it is the first whose other names are in the file too, else the first.
    """
    fitting = None
    for rule in layout.rules:
        # In a file without a prefix everything is at the top.
        texts = [text if text is None or has_prefix else text.removeprefix("/") for text in rule.sources]
        for position, text in enumerate(texts):
            if text is None or not (found := template(text).fullmatch(name)):
                continue
            values = found.groupdict()
            match = tuple(fill(target, values) for target in rule.targets), rule, position
            if all(other is None or fill(other, values) in names for other in texts):
                return match
            fitting = fitting or match
    return fitting


def _read(rule: Rule, parts: Sequence[Lazy | None], targets: tuple[str, ...], fields: Mapping[str, Any]) -> list[Lazy]:
    """Bring what belongs together into our layout."""
    given = [part for part in parts if part is not None]
    if len({part.shape for part in given}) > 1:
        shapes = sorted({part.shape for part in given})
        raise RequestError(f"the tensors that make up {', '.join(targets)} have different shapes: {shapes}")
    sizes = axis_sizes(rule.pattern.partition("->")[0], fields) if rule.pattern else {}
    label = ", ".join(targets)

    def joined(*values: Tensor) -> Tensor:
        rest = iter(values)
        members = [torch.zeros_like(values[0]) if part is None else next(rest) for part in parts]
        value = stacked(*members) if isinstance(rule.theirs, tuple) else members[0]
        return value if rule.pattern is None else rearranged(value, rule.pattern, sizes, label)

    whole = given[0]
    if rule.pattern is not None or len(parts) > 1:
        whole = combine(joined, given, rule.pattern or "stack")
    if rule.scale is not None:
        factors = factors_of(rule.scale, fields)
        whole = combine(times(factors), [whole], factors_in_words(factors))
    if not rule.shares:
        return [whole]
    ends = [sum(rule.shares[: k + 1]) / sum(rule.shares) for k in range(len(rule.shares))]
    starts = [0.0, *ends[:-1]]
    return [combine(_share(a, b), [whole], f"rows {a:.3g} to {b:.3g}") for a, b in zip(starts, ends, strict=True)]


def _share(start: float, end: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value[round(start * len(value)) : round(end * len(value))]
