"""The words in which a layout of ViT weights is written down: one table that serves both directions.

A `Format` is data. Its `Rule`s say how each kind of tensor is called and laid out on both sides; the way back is the
same rule read from right to left. The other fields say what a file holds that we don't (dropped, set aside, refused),
what we hold that it doesn't (constants), which networks it can express (`holds`), and how its library's configuration
maps to ours. `conversion.py` applies all this; nothing here, and nothing there, knows a particular format.

Names in rules and patterns:
- `{i}` stands for a number, `{kind}` for weight or bias, `{rest}` for any ending.
- A leading slash means "at the top of the file, never behind the network's prefix": `/classifier.{kind}`.
- Axes of einops patterns that are sized from the config: nh heads, hd width of a head, p and q height and width of a
  patch, c channels, d width; `qkv` is 3 and `kv` is 2. Other letters are free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from vit_finetune.common.suggest import closest
from vit_finetune.models.infer_kin import family_of
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.rewrites import Rewrite

# The config of a format's own family, whose fields its functions read.
Config: TypeAlias = Any

_LISTED = 8  # names shown per side of an error; the rest is counted
_PLACEHOLDERS = {
    "{i}": r"(?P<i>\d+)",
    "{j}": r"(?P<j>\d+)",
    "{kind}": r"(?P<kind>weight|bias)",
    "{rest}": r"(?P<rest>.+)",
}

# Fields of a network that every layout can say, because they are numbers in shapes or act in training only.
_FREE = {
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("dynamic_img_size", "weight_init", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "rope_rescale_coords"),
}


def structure(family: type[NetworkConfig] = ViTConfig) -> Mapping[str, Any]:
    """Return the fields of a network that are choices of structure or function, each as the default network acts.

    Args:
        family: the kind of network.
    """
    default = family()
    names = (item.name for item in fields(family))  # type: ignore[arg-type]  # every family is a dataclass
    return {name: default.acting(name) for name in names if name not in _FREE}


@dataclass(frozen=True)
class Rule:
    """How one kind of tensor is called and laid out on both sides.

    Attributes:
        theirs: the file's name, or several that are stacked on a new first axis; None among them is a tensor of zeros
            that the file leaves out (and that must be zero on the way back).
        ours: timm's name, with the same placeholders; or several, which share the result's first axis.
        pattern: einops pattern from theirs to ours; None keeps the layout. Dots stand for axes that stay as they are.
        shares: with several `ours`, the share of the first axis that each gets: (1, 2) is a third and two thirds.
        scale: from the network's fields to one factor for each equal part of our first axis; the file's values times
            these, computed in float64, are ours.
        when: whether this rule is the one to write a network with, where several have the same `ours`; None is always.
            In reading, names decide.
    """

    theirs: str | tuple[str | None, ...]
    ours: str | tuple[str, ...]
    pattern: str | None = None
    shares: tuple[int, ...] = ()
    scale: Callable[[Mapping[str, Any]], Sequence[float]] | None = None
    when: Callable[[Config], bool] | None = None

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The file's names, always as a tuple."""
        return self.theirs if isinstance(self.theirs, tuple) else (self.theirs,)

    @property
    def targets(self) -> tuple[str, ...]:
        """Our names, always as a tuple."""
        return self.ours if isinstance(self.ours, tuple) else (self.ours,)


def first_axis(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a linear layer's bias, from its weight's."""
    return shape[:1]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A tensor that one side holds and the other leaves out, because it never is anything else.

    Attributes:
        name: on the side that holds it.
        like: timm's name of a tensor that tells how large it is; the constant exists where this one does.
        shape: from that tensor's shape to the constant's.
        value: what every element is; "eye" is the identity matrix.
        reason: why another value can't be written, for the error.
        when: the networks for which it is so; None is all. Looked at in writing only.
        unless: timm's name of a tensor beside which the constant doesn't exist. Looked at in reading only.
    """

    name: str
    like: str
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = first_axis
    value: float | str = 0.0
    reason: str = ""
    when: Callable[[Config], bool] | None = None
    unless: str = ""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One layout of ViT weights.

    Attributes:
        name: how it is called in options and messages.
        library: what writes and reads it, for people.
        families: the configs of the networks that it describes: one, but for timm's layout, which is all of ours.
        present: name endings that are in every such file; `a|b` is one of two.
        absent: name parts that are in none, which tell it from its kin.
        dims: name endings to the number of axes that such tensors have, where names alone don't tell it from its kin.
        yields_to: formats that are told by the same names and more: where one of them fits, it is that one.
        rules: one per kind of tensor; empty means that the names are ours already.
        aliases: other spellings of names (of other versions, in memory), each with the spelling that rules use.
        stacked: (spelling with all blocks in one tensor, spelling of one block) where a file may hold layers stacked.
        prefixes: what may stand before every name of the network, longest first.
        prefix: what the library writes there for a network.
        ours_only: what only we hold, such as a head's bias.
        theirs_only: what only the file holds and its library asks for, such as a mask token.
        drop: names that have no place in ours, each with the reason.
        aside: the same, but kept for the way back.
        refuse: names of what no network of ours can do, each with the reason and what could be done instead.
        before_head: the same for layers between the network and its head; where the head isn't wanted (num_classes=0 is
            known), they are dropped with it.
        unplaced: our names that have no place in the file, each with the reason and what could be done instead.
        holds: fields of a network that may differ from its family's defaults, each with the values that the format can
            express; () is any. Fields that only count or act in training are free anyway.
        defaults: fields that every such file has and shapes don't tell.
        told: from the file's names and shapes, and the fields known so far, to fields that only this layout tells.
        check: says in words why a network can't be written though its fields can; empty where it can.
        rewrites: changes of more than one tensor at a time, applied after the rules (and before them on the way back).
        config_from: from the library's configuration to our fields.
        config_to: from our network to the library's configuration.
        file: the name of the weight file that the library looks for.
        wrapper: the key under which the library's pickles hold the weights; "" is none.
        config_file: the name of its configuration file.
        reference: from a folder of this format and its network to the library's own forward pass, which gives logits,
            or normed tokens where there is no head; None proves conversions in our network. It imports the library.
        pos_embed: how its library resamples positions; a method of `resample.py`.
    """

    name: str
    library: str = ""
    families: tuple[type[NetworkConfig], ...] = (ViTConfig,)
    present: tuple[str, ...]
    absent: tuple[str, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    yields_to: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    stacked: tuple[str, str] | None = None
    prefixes: tuple[str, ...] = ()
    prefix: Callable[[Config], str] | None = None
    ours_only: tuple[Constant, ...] = ()
    theirs_only: tuple[Constant, ...] = ()
    drop: Mapping[str, str] = field(default_factory=dict)
    aside: Mapping[str, str] = field(default_factory=dict)
    refuse: Mapping[str, str] = field(default_factory=dict)
    before_head: Mapping[str, str] = field(default_factory=dict)
    unplaced: Mapping[str, str] = field(default_factory=dict)
    holds: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    told: Callable[[Mapping[str, tuple[int, ...]], Mapping[str, Any]], Mapping[str, Any]] | None = None
    check: Callable[[Config], str] | None = None
    rewrites: tuple[Rewrite, ...] = ()
    config_from: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    config_to: Callable[[Config], dict[str, Any]] | None = None
    file: str = "model.safetensors"
    wrapper: str = ""
    config_file: str = "config.json"
    reference: Callable[[Path, Config], Callable[[Tensor], Tensor]] | None = None
    pos_embed: str = "bicubic"

    @property
    def kinds(self) -> str:
        """The kinds of networks that the format holds, in words."""
        return " or ".join(f"a {family.KIND}" for family in self.families)

    def matches(self, tensors: Mapping[str, Any]) -> bool:
        """Say whether names (and numbers of axes) carry this format's fingerprint, and no other's."""
        dotted = {f".{name.replace('/', '.')}": tensor for name, tensor in tensors.items()}
        groups = [tuple(f".{ending}" for ending in endings.split("|")) for endings in self.present]
        has_all = all(any(name.endswith(endings) for name in dotted) for endings in groups)
        has_none = not any(part in name for part in self.absent for name in dotted)
        has_axes = all(
            len(tensor.shape) == axes
            for ending, axes in self.dims.items()
            for name, tensor in dotted.items()
            if name.endswith(f".{ending}")
        )
        return has_all and has_none and has_axes

    def allowed(self, name: str) -> tuple[Any, ...]:
        """Return the values of a structural field that this format expresses; () is any."""
        if not self.rules:
            return ()
        return self.holds[name] if name in self.holds else (self.families[0]().acting(name),)

    def family(self, names: Iterable[str]) -> type[NetworkConfig]:
        """Return the config of the network that a file of this format holds.

        Args:
            names: of its tensors, under timm's names.
        """
        return self.families[0] if len(self.families) == 1 else family_of(names)

    def fixed(self) -> dict[str, Any]:
        """Return the fields that have one value only in this format, and the format's defaults."""
        names = structure(self.families[0])
        single = {name: values[0] for name in names if len(values := self.allowed(name)) == 1}
        if "fc_norm" not in self.holds:
            single.pop("fc_norm", None)  # token pooling has no such choice
        return {**single, **self.defaults}


@cache
def template(text: str) -> re.Pattern[str]:
    """Return the regular expression of a name with placeholders."""
    expression = re.escape(text)
    for word, group in _PLACEHOLDERS.items():
        expression = expression.replace(re.escape(word), group, 1)
        expression = expression.replace(re.escape(word), f"(?P={word[1:-1]})")
    return re.compile(expression)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values for the placeholders of a name."""
    for word, value in values.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def reason_for(name: str, reasons: Mapping[str, str]) -> str | None:
    """Return the reason of the first pattern (a name with placeholders) that a name fits."""
    return next((reason for pattern, reason in reasons.items() if template(pattern).fullmatch(name)), None)


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
