"""Tables that translate another library's names into ours, and the engine that applies them.

A `Format` is data: one `Rule` per kind of tensor. A rule whose `theirs` has several names stacks them on a new first
axis and rearranges; the way back is the same pattern with its sides swapped, so one table serves both directions.
Every name of the file is consumed exactly once: by a rule, or by a `drop` pattern that says why. Anything else is one
error that lists both sides. Nothing here knows a particular format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import closest

_LISTED = 8  # names shown per side of an error; the rest is counted


@dataclass(frozen=True)
class Rule:
    """How one kind of tensor is called and laid out on both sides.

    Attributes:
        theirs: the file's name, or several that become one tensor of ours; `{i}` stands for a block's number.
        ours: timm's name, with the same placeholders.
        pattern: einops pattern from theirs (stacked first, where there are several) to ours; None keeps the layout.
    """

    theirs: str | tuple[str, ...]
    ours: str
    pattern: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The file's names, always as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True, kw_only=True)
class Format:
    """One layout of ViT weights.

    Attributes:
        name: how it is called in options and messages.
        rules: one per kind of tensor; empty means that the names are ours already.
        present: name endings that are in every such file.
        absent: name parts that are in none, which tell it from its kin.
        prefixes: what may stand before every name of the network.
        drop: regular expressions of whole names that have no place in ours, each with the reason.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    present: tuple[str, ...]
    absent: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    drop: Mapping[str, str] = field(default_factory=dict)

    def matches(self, names: Mapping[str, Tensor]) -> bool:
        """Say whether the names carry this format's fingerprint, and no other's."""
        has_all = all(any(("." + name).endswith("." + ending) for name in names) for ending in self.present)
        return has_all and not any(part in "." + name for part in self.absent for name in names)


@dataclass(frozen=True)
class Converted:
    """Tensors under our names, and what had no place among them.

    Attributes:
        tensors: timm's name to tensor.
        dropped: the file's name to the reason.
    """

    tensors: dict[str, Tensor]
    dropped: dict[str, str]


def to_timm(tensors: Mapping[str, Tensor], layout: Format) -> Converted:
    """Translate a state dict into timm's names and shapes.

    Args:
        tensors: the file's tensors.
        layout: their format.

    Raises:
        RequestError: a name fits no rule, or a tensor that belongs to a group is missing.
    """
    prefix = next((p for p in layout.prefixes if any(name.startswith(p) for name in tensors)), "")
    groups: dict[str, tuple[Rule, dict[int, str]]] = {}
    dropped: dict[str, str] = {}
    converted = Converted({}, dropped)
    unknown: list[str] = []
    for name, tensor in tensors.items():
        bare = name.removeprefix(prefix)
        reason = next((why for pattern, why in layout.drop.items() if re.fullmatch(pattern, bare)), None)
        if reason is not None:
            dropped[name] = reason
        elif not layout.rules:
            converted.tensors[bare] = tensor
        elif found := _match(layout, bare):
            ours, rule, position = found
            first, parts = groups.setdefault(ours, (rule, {}))
            if first != rule or position in parts:
                raise RequestError(f"the file holds two tensors for {ours}: {', '.join(parts.values())}, {name}")
            parts[position] = name
        else:
            unknown.append(name)
    missing = [ours for ours, (rule, parts) in groups.items() if len(parts) != len(rule.sources)]
    if unknown or missing:
        left = [f"{ours} (found only {', '.join(groups[ours][1].values())})" for ours in missing]
        raise RequestError(
            f"the {layout.name} names don't add up; " + two_sides(unknown, left, "without a rule", "incomplete")
        )
    for ours, (rule, parts) in groups.items():
        converted.tensors[ours] = _rearranged([tensors[parts[k]] for k in sorted(parts)], rule, ours)
    return converted


def two_sides(theirs: list[str], ours: list[str], theirs_are: str, ours_are: str) -> str:
    """Describe two lists of names that should have met, each of theirs with the closest of ours.

    Args:
        theirs: names on the file's side.
        ours: names on the model's side.
        theirs_are: what is wrong with the first, in words.
        ours_are: what is wrong with the second, in words.
    """
    sides = []
    for names, others, are in ((theirs, ours, theirs_are), (ours, theirs, ours_are)):
        if not names:
            continue
        shown = []
        for name in sorted(names)[:_LISTED]:
            near = closest(name, others, limit=1)
            shown.append(f"{name} (closest: {near[0]})" if near else name)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        sides.append(f"{len(names)} {are}: {', '.join(shown)}{more}")
    return "; ".join(sides)


def _match(layout: Format, name: str) -> tuple[str, Rule, int] | None:
    """Return our name, the rule, and the position among the rule's names; None where no rule fits."""
    for rule in layout.rules:
        for position, template in enumerate(rule.sources):
            found = re.fullmatch(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)"), name)
            if found:
                return rule.ours.format(**found.groupdict()), rule, position
    return None


def _rearranged(parts: list[Tensor], rule: Rule, ours: str) -> Tensor:
    """Stack what belongs together and bring it into our layout."""
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise RequestError(f"the tensors that make up {ours} have different shapes: {sorted(shapes)}")
    if rule.pattern is None:
        return parts[0]
    value: Tensor = rearrange(parts[0] if isinstance(rule.theirs, str) else torch.stack(parts), rule.pattern)
    return value
