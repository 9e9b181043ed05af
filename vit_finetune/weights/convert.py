"""From one library's weights to another's, planned on names and shapes, with every tensor accounted for.

`plan_conversion` says what would be done; `convert_state_dict` does it in memory. Writing what the other library reads
is `convert_checkpoint`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models.bias_table import resize_bias_table
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.rel_pos_vit import table_rows
from vit_finetune.weights.adapt import BIAS_TABLE, HEAD_PARTS
from vit_finetune.weights.architecture import names_of, stated_config
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.conversion import has_names
from vit_finetune.weights.formats import detect_format, format_named
from vit_finetune.weights.hints import Hints, known_fields, named_network
from vit_finetune.weights.lazy import Lazy, Plan, cast, combine, lazily
from vit_finetune.weights.network import network_of, refuse_not_finite, traceless
from vit_finetune.weights.readers import unwrap
from vit_finetune.weights.reading import plan_to_timm
from vit_finetune.weights.resample import resample_pos_embed
from vit_finetune.weights.rules import Format
from vit_finetune.weights.way_back import Earlier, plan_back
from vit_finetune.weights.writing import plan_from_timm


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a conversion changes beside the layout.

    Attributes:
        head: "keep" or "drop" the classifier.
        img_size: (height, width) in pixels that the positions are resampled for; None keeps the file's.
        pos_embed: how they are resampled; None takes the method of the format that is written.
        dtype: what every tensor is stored as; None keeps each one's own.
    """

    head: str = "keep"
    img_size: tuple[int, int] | None = None
    pos_embed: str | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What would be done, before it is.

    Attributes:
        source: the format that is read.
        target: the format that is written.
        config: the network, with the changes that were asked for.
        ours: its tensors under timm's names, in the types of the source.
        written: the network as the target says it; a rewrite may have taken an option away.
        plan: the tensors that are written.
        dropped: the source's names that have no place, each with the reason.
        earlier: the file that is read, as far as it has no place in the target: what the way back needs.
        restored: the file whose set-aside tensors are written again: the source, or what it was once converted from.
        notes: decisions and rewrites, one sentence each.
    """

    source: Format
    target: Format
    config: NetworkConfig
    ours: Mapping[str, Lazy]
    written: NetworkConfig
    plan: Plan
    dropped: Mapping[str, str]
    earlier: Earlier
    restored: Earlier | None
    notes: tuple[str, ...]


def convert_state_dict(
    tensors: Mapping[str, Tensor], *, to: str, source: str = "auto", config: Hints = None
) -> dict[str, Tensor]:
    """Translate a state dict from one library's layout into another's.

    Args:
        tensors: name to tensor, or what a training script saved around it; not changed.
        to: the format wanted, such as "timm", "hf_vit" or "torchvision".
        source: the format of `tensors`; "auto" detects it.
        config: what the tensors don't tell: a network's config, an architecture's name, the library's own
            configuration as a mapping, or hints: num_heads, eps, act, pool, img_size, patch_size, or any field.

    Returns:
        The same network under the names and in the shapes of the other library, each tensor with memory of its own.

    Raises:
        NotRepresentable: one side can't say what the other computes; the message says what, and what could be done.
        RequestError: a tensor is missing, left over, misshapen or damaged, or something has to be said in `config`.
    """
    state, notes = unwrap(tensors, "the mapping")
    conversion = plan_conversion(
        Checkpoint(tensors=state, description="the mapping", notes=notes), to=to, source=source, config=config
    )
    result = {}
    for name, lazy in conversion.plan.tensors.items():
        value = lazy.compute()
        refuse_not_finite(name, value)
        # A tensor that only changed its name would otherwise share the caller's memory.
        result[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return result


def plan_conversion(
    checkpoint: Checkpoint,
    *,
    to: str,
    source: str = "auto",
    config: Hints = None,
    changes: Changes | None = None,
    names_only: bool | None = None,
) -> Conversion:
    """Say what a conversion would do; arguments and errors as for `convert_state_dict`.

    Args:
        checkpoint: the source.
        to: the format wanted.
        source: the format read; "auto" detects it.
        config: what the source doesn't tell.
        changes: what is changed beside the layout.
        names_only: don't ask for what leaves no trace in names and shapes; None does so where timm's layout, which
            says nothing else either, is wanted.
    """
    changes = changes or Changes()
    target = format_named(to)
    stated = _stated(checkpoint, config)
    layout = _layout(checkpoint, source, stated)
    library = layout.config_from(checkpoint.library) if layout.config_from and checkpoint.library else {}
    given = known_fields(config, layout)
    known = {**library, **(stated.to_mapping() if stated else {}), **given}
    known |= {"num_classes": 0} if changes.head == "drop" else {}
    plan = plan_to_timm(lazily(checkpoint.tensors), layout, known)
    network = network_of(
        plan, layout, stated=stated, names_only=target.name == "timm" if names_only is None else names_only
    )
    asked = _against_the_source(given, {**library, **(stated.to_mapping() if stated else {})}, type(network))
    ours, network_out, notes = _changed(plan.tensors, network, changes, target)
    earlier = _as_earlier(plan, layout, checkpoint)
    restored = earlier if target is layout else checkpoint.earlier
    restored = restored if restored is not None and restored.format == target.name else None
    out = _written(ours, target, network_out, restored, changes, same_names=target is not layout)
    headless = {name for key in plan.tensors.keys() - ours.keys() for name in plan.tensors[key].sources}
    dropped = {**checkpoint.dropped, **plan.dropped, **dict.fromkeys(sorted(headless), "head='drop' was asked for")}
    if target is layout:  # what has no place in ours still has its place there
        placed = {name for value in out.tensors.values() for name in value.sources}
        dropped = {name: reason for name, reason in dropped.items() if name not in placed}
    return Conversion(
        source=layout,
        target=target,
        config=network_out,
        ours=ours,
        written=type(network_out).from_mapping(out.fields),
        plan=out,
        dropped=dropped,
        earlier=earlier,
        restored=restored,
        notes=(*checkpoint.notes, *asked, *plan.notes, *notes, *out.notes),
    )


def _layout(checkpoint: Checkpoint, source: str, stated: NetworkConfig | None) -> Format:
    """Return the source's format, which has to be one of the kind of network that is named."""
    if source == "auto":
        named = stated is not None and has_names(checkpoint.tensors, names_of(stated))
        source = "timm" if named else detect_format(checkpoint.tensors)
    layout = format_named(source)
    if stated is not None and type(stated) not in layout.families:
        raise RequestError(f"the network that is named is a {stated.KIND}, but {layout.name} is for {layout.kinds}")
    return layout


def _as_earlier(plan: Plan, layout: Format, checkpoint: Checkpoint) -> Earlier:
    """Return what the way back needs of a source."""
    names = {name: own for name, own in plan.names.items() if own not in plan.dropped or own in plan.aside}
    return Earlier(
        format=layout.name, names=names, prefix=plan.prefix, config=checkpoint.library, aside=dict(plan.aside)
    )


def _against_the_source(
    given: Mapping[str, Any], said: Mapping[str, Any], family: type[NetworkConfig]
) -> tuple[str, ...]:
    """Say where a caller knows better than the source what weights don't tell."""
    return tuple(
        f"{key}={given[key]!r} was asked for; the source itself says {said[key]!r}"
        for key in (*traceless(family), "global_pool")
        if key in given and key in said and given[key] != said[key]
    )


def _written(
    ours: Mapping[str, Lazy],
    target: Format,
    config: NetworkConfig,
    restored: Earlier | None,
    changes: Changes,
    *,
    same_names: bool,
) -> Plan:
    """Plan the result, with what an earlier file of its format held beside the network."""
    if (dtype := changes.dtype) is not None:
        ours = {name: cast(value, dtype) for name, value in ours.items()}
    if restored is None:
        return plan_from_timm(ours, target, config)
    keeps_head = changes.head == "keep"
    return plan_back(ours, target, config, restored, same_names=same_names, head=keeps_head, dtype=changes.dtype)


def _stated(checkpoint: Checkpoint, config: Hints) -> NetworkConfig | None:
    """Return the whole network where the caller or the source names it; single hints change it."""
    named = named_network(config)
    stated = named or stated_config(checkpoint)
    if stated is None or config is None or isinstance(config, NetworkConfig | str):
        return stated
    return stated.updated(known_fields(config, format_named("timm")))


def _changed(
    tensors: Mapping[str, Lazy], config: NetworkConfig, changes: Changes, target: Format
) -> tuple[dict[str, Lazy], NetworkConfig, tuple[str, ...]]:
    """Drop the head and resample positions, as asked."""
    values, notes = dict(tensors), []
    if changes.head not in {"keep", "drop"}:
        raise RequestError(f"head={changes.head!r} is none of keep, drop")
    if changes.head == "drop":
        values = {name: value for name, value in values.items() if not name.startswith(HEAD_PARTS)}
        config = config.updated({"num_classes": 0})
    if changes.img_size is not None and changes.img_size != config.img_size:
        old, config = config, config.updated({"img_size": changes.img_size})
        resized, words = _resized(values, old, config, changes.pos_embed or target.pos_embed)
        values |= resized
        notes.append(words)
    return values, config, tuple(notes)


def _resized(
    tensors: Mapping[str, Lazy], old: NetworkConfig, new: NetworkConfig, method: str
) -> tuple[dict[str, Lazy], str]:
    """Return the tensors that know the grid of patches, for another one, and what was done."""
    grids = f"{_by(old.grid_size)} -> {_by(new.grid_size)}"
    if "pos_embed" in tensors:
        prefix = 0 if getattr(old, "no_embed_class", False) else old.num_prefix_tokens
        words = f"positions {grids}, {method}"

        def table(value: Tensor) -> Tensor:
            return _resampled(value, old.grid_size, new.grid_size, prefix, method)

        return {"pos_embed": combine(table, [tensors["pos_embed"]], words)}, words
    names = [name for name in tensors if name.endswith(BIAS_TABLE)]
    if not names:
        return {}, f"no positions depend on the grid {grids}"
    words = f"position biases {grids}, geometric"

    def biases(value: Tensor) -> Tensor:
        if value.is_meta:
            return value.new_empty(table_rows(new.grid_size), value.shape[1])
        return resize_bias_table(value, old=old.grid_size, new=new.grid_size)

    return {name: combine(biases, [tensors[name]], words) for name in names}, words


def _resampled(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int, method: str
) -> Tensor:
    if table.is_meta:  # torch has no antialiased resampling of shapes alone
        return table.new_empty(1, num_prefix + new_grid[0] * new_grid[1], table.shape[2])
    return resample_pos_embed(table, old_grid, new_grid=new_grid, num_prefix=num_prefix, method=method)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
