"""Fitting a file's tensors to a model's, name by name, so that nothing is left unexplained.

A file and a model may differ in six named ways only: the head, the image size, the patch size, the input channels, the
place of the final norm (which follows `global_pool`), and biases of queries and values that are zero. Everything else
is one error that lists both sides. This module compares and computes; it reads no file and changes no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models.bias_table import resize_bias_table
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.rel_pos_vit import EXTRA_ROWS
from vit_finetune.weights.resample import adapt_in_chans, resample_patch_embed, resample_pos_embed
from vit_finetune.weights.rules import two_sides

HeadChoice = Literal["drop", "keep", "match"]
HEAD_CHOICES: tuple[HeadChoice, ...] = ("drop", "keep", "match")
HEAD_PARTS = ("head.", "head_dist.", "pre_logits.")
_FINAL_NORMS = ("norm.", "fc_norm.")
_POS_EMBED = "pos_embed"
_QV_BIASES = (".attn.q_bias", ".attn.v_bias")
BIAS_TABLE = ".relative_position_bias_table"
_PATCH_WEIGHT = "patch_embed.proj.weight"


@dataclass
class Fitted:
    """The fate of every tensor, filled in as the parts are fitted.

    Attributes:
        tensors: what to put into the model, by its names.
        resampled: name to what was done.
        dropped: the file's name to the reason.
        newly_initialized: the model's names that the file has nothing for.
        notes: what was assumed, one sentence each.
    """

    tensors: dict[str, Tensor]
    resampled: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    newly_initialized: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fit_tensors(
    tensors: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    config: NetworkConfig,
    head: HeadChoice,
    pos_embed: str,
    grid: tuple[int, int] | None,
) -> Fitted:
    """Decide for every tensor of the file and of the model what happens to it.

    Args:
        tensors: the file's, under timm's names.
        target: the model's state dict; only names and shapes are read.
        config: the model's.
        head: "drop" leaves the file's head out, "keep" demands it, "match" takes it where the shapes agree.
        pos_embed: how positions are resampled; see `resample_pos_embed`.
        grid: (rows, columns) of patches that the file's position table covers; None takes it for a square.

    Raises:
        RequestError: something is left over, missing or of another shape.
    """
    fitted = Fitted(dict(tensors))
    _fit_head(fitted, target, head)
    _fit_final_norm(fitted, target, config)
    if _POS_EMBED in fitted.tensors and _POS_EMBED in target:
        _fit_positions(fitted, config, pos_embed, grid)
    _fit_bias_tables(fitted, target, config, grid)
    if _PATCH_WEIGHT in fitted.tensors and _PATCH_WEIGHT in target:
        _fit_patches(fitted, config)
    _leave_out_zero_biases(fitted, target)
    _demand_equality(fitted, target)
    return fitted


def _fit_head(fitted: Fitted, target: Mapping[str, Tensor], head: HeadChoice) -> None:
    theirs = {name: tensor for name, tensor in fitted.tensors.items() if name.startswith(HEAD_PARTS)}
    ours = [name for name in target if name.startswith(HEAD_PARTS)]
    _merge_equal_heads(fitted, theirs, ours)
    same = theirs.keys() == set(ours) and all(theirs[name].shape == target[name].shape for name in ours)
    if theirs and same and head != "drop":
        return
    if head == "keep":
        if not theirs:
            raise RequestError("the file has no head to keep; ask for head='drop'")
        if extra := sorted(theirs.keys() - set(ours)):
            raise RequestError(
                f"the file's head can't be kept: the model has no {', '.join(extra)}; ask for head='drop'"
            )
        shapes = ", ".join(f"{name} {list(theirs[name].shape)}" for name in sorted(theirs))
        raise RequestError(f"the file's head ({shapes}) doesn't fit the model's {sorted(ours)}; ask for head='drop'")
    if head == "drop":
        reason = "head='drop' was asked for"
    else:
        reason = "its shapes don't agree with the model's head" if ours else "the model has no head"
    for name in theirs:
        del fitted.tensors[name]
        fitted.dropped[name] = reason
    fitted.newly_initialized += ours


def _merge_equal_heads(fitted: Fitted, theirs: dict[str, Tensor], ours: list[str]) -> None:
    """Take two equal heads for one where the model has one: the mean of equal heads is that head."""
    pairs = [(f"head_dist.{kind}", f"head.{kind}") for kind in ("weight", "bias")]
    if any(name in ours for name, _ in pairs) or not all({a, b} <= theirs.keys() for a, b in pairs):
        return
    if all(torch.equal(theirs[a], theirs[b]) for a, b in pairs):
        for name, twin in pairs:
            del theirs[name], fitted.tensors[name]
            fitted.dropped[name] = f"equal to {twin}; the model has one head for both tokens"


def _fit_final_norm(fitted: Fitted, target: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Start the final norm new where pooling moved it: a norm of tokens says nothing about pooled vectors."""
    theirs = [name for name in fitted.tensors if name.startswith(_FINAL_NORMS)]
    ours = [name for name in target if name.startswith(_FINAL_NORMS)]
    places = {name.partition(".")[0] for name in theirs}, {name.partition(".")[0] for name in ours}
    if places not in (({"norm"}, {"fc_norm"}), ({"fc_norm"}, {"norm"})):
        return
    for name in theirs:
        del fitted.tensors[name]
        fitted.dropped[name] = f"global_pool={config.global_pool!r} has its final norm in {ours[0].partition('.')[0]}"
    for name in ours:
        shape = target[name].shape
        fitted.tensors[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    fitted.newly_initialized += ours


def _fit_positions(fitted: Fitted, config: NetworkConfig, method: str, grid: tuple[int, int] | None) -> None:
    table = fitted.tensors[_POS_EMBED]
    num_prefix = 0 if getattr(config, "no_embed_class", False) else config.num_prefix_tokens
    patches = table.shape[1] - num_prefix if table.ndim == 3 else -1
    side = math.isqrt(max(patches, 0))
    new_grid = config.grid_size
    if grid is not None and math.prod(grid) == patches:
        old_grid = grid
    elif side > 0 and side * side == patches:
        old_grid = (side, side)
    elif patches == math.prod(new_grid):
        old_grid = new_grid
        fitted.notes.append(f"took the file's position grid for the model's {_by(new_grid)}: the file doesn't say")
    else:
        raise RequestError(
            f"pos_embed has the shape {list(table.shape)}: without {num_prefix} prefix rows that leaves {patches} "
            f"patches, which is no square; say what they cover with grid=(rows, columns)"
        )
    if old_grid != new_grid:
        new = resample_pos_embed(table, old_grid, new_grid=new_grid, num_prefix=num_prefix, method=method)
        fitted.tensors[_POS_EMBED] = new
        fitted.resampled[_POS_EMBED] = f"grid {_by(old_grid)} -> {_by(new_grid)}, {method}"


def _fit_bias_tables(
    fitted: Fitted, target: Mapping[str, Tensor], config: NetworkConfig, grid: tuple[int, int] | None
) -> None:
    """Resize BEiT's tables of biases by distance, one in each block, where the picture has another size."""
    for name in (name for name in target if name.endswith(BIAS_TABLE)):
        table = fitted.tensors.get(name)
        if table is None or table.ndim != 2 or table.shape == target[name].shape:
            continue
        side = math.isqrt(max(int(table.shape[0]) - EXTRA_ROWS, 0))
        if grid is None and side * side != int(table.shape[0]) - EXTRA_ROWS:
            raise RequestError(f"{name} has {table.shape[0]} rows, which no square has; say grid=(rows, columns)")
        old = grid or ((side + 1) // 2, (side + 1) // 2)
        fitted.tensors[name] = resize_bias_table(table, old=old, new=config.grid_size)
        fitted.resampled[name] = f"grid {_by(old)} -> {_by(config.grid_size)}, geometric"


def _fit_patches(fitted: Fitted, config: NetworkConfig) -> None:
    weight = fitted.tensors[_PATCH_WEIGHT]
    if weight.ndim != 4:
        return
    channels, old_size = weight.shape[1], (weight.shape[2], weight.shape[3])
    changes = []
    if channels != config.in_chans:
        weight = adapt_in_chans(weight, config.in_chans)
        changes.append(f"{channels} -> {config.in_chans} channels")
    if old_size != config.patch_size:
        weight = resample_patch_embed(weight, config.patch_size)
        changes.append(f"patch {_by(old_size)} -> {_by(config.patch_size)}")
    if changes:
        fitted.tensors[_PATCH_WEIGHT] = weight
        fitted.resampled[_PATCH_WEIGHT] = ", ".join(changes)


def _leave_out_zero_biases(fitted: Fitted, target: Mapping[str, Tensor]) -> None:
    """Leave out biases of queries and values where the model has none and they are zero, as in most DINOv3 releases."""
    for name in [name for name in fitted.tensors if name.endswith(_QV_BIASES) and name not in target]:
        if not fitted.tensors[name].any():
            del fitted.tensors[name]
            fitted.dropped[name] = "zero everywhere; the model has no such bias"


def _demand_equality(fitted: Fitted, target: Mapping[str, Tensor]) -> None:
    """Raise unless what remains of the file is exactly what the model needs."""
    wanted = target.keys() - set(fitted.newly_initialized)
    given = fitted.tensors.keys() - set(fitted.newly_initialized)
    problems = []
    if given != wanted:
        sides = two_sides(sorted(given - wanted), sorted(wanted - given), "only in the file", "only in the model")
        problems.append(sides)
    shapes = [
        f"{name} is {list(fitted.tensors[name].shape)} in the file and {list(target[name].shape)} in the model"
        for name in sorted(given & wanted)
        if fitted.tensors[name].shape != target[name].shape
    ]
    if shapes:
        more = f" and {len(shapes) - 8} more" if len(shapes) > 8 else ""
        problems.append(f"{len(shapes)} of another shape: {', '.join(shapes[:8])}{more}")
    kinds = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in sorted(fitted.tensors.items())
        if not tensor.is_floating_point()
    ]
    if kinds:
        problems.append(f"{len(kinds)} not of a floating-point type: {', '.join(kinds[:8])}")
    if problems:
        raise RequestError("the weights don't fit the model: " + "; ".join(problems))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
