"""Which parameters of a network train, chosen by a mode's name, with patterns laid over it.

Not how they train: learning rates by depth are the optimizer's (`training/optim.py`); nor when: a staged mode (lp_ft,
gradual) is a row of these modes (`training/stages.py`).

Sources: bias (BitFit, arXiv 2106.10199), norm (arXiv 2003.00152), attention (2203.09795, DeiT's `--attn-only`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from vit_finetune.common.additions import ADDED_TUNING_MODES, TuningMode, add
from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models import Backbone, boundary_of

MODES = ("full", "linear_probe", "last_n", "bias", "norm", "attention", "lora")
# Parts without parameters of their own (rotary ones excepted) that disturb what the first block sees.
_INPUT_NOISE = ("pos_drop", "patch_drop", "rope")


# Of a recipe's tuning.mode: rows of these modes, and what trains nothing in the network.
_OF_RECIPES = ("lp_ft", "gradual", "readout")


def register_tuning_mode(name: str, choose: TuningMode) -> None:
    """Add a value of `tuning.mode`, for this process.

    Args:
        name: a Python name that no mode of the package has.
        choose: from the network with its new head to the names of the parameters that train.

    Raises:
        RequestError: the name is none, or taken.
    """
    add(ADDED_TUNING_MODES, name, choose, kind="tuning mode", own=(*MODES, *_OF_RECIPES))


@dataclass(frozen=True)
class Tuned:
    """How many parameters train and how many are frozen; and the last boundary before those that train.

    Attributes:
        num_trained: values of parameters.
        num_frozen: values of parameters.
        boundary: blocks before everything that trains; depth + 1 where the head alone does.
    """

    num_trained: int
    num_frozen: int
    boundary: int


def apply_tuning(
    model: Backbone,
    mode: str,
    *,
    num_blocks: int | None = None,
    train: Sequence[str] = (),
    freeze: Sequence[str] = (),
) -> Tuned:
    """Set `requires_grad` of every parameter, which frozen parts stay in eval mode, and `Backbone.boundary`.

    A frozen block, and the embedding where it and the first block are frozen, has no dropout, DropPath or patch dropout
    in training. Torch records nothing for the backward pass until the first parameter that trains.

    Args:
        model: the network with its new head; changed.
        mode: "full" (all), "linear_probe" (the head alone), "last_n" (the last `num_blocks` blocks and everything
            between them and the output), "bias" or "norm" (the head and all biases or norms), "attention" (the head,
            the attention of every block and learned positions), "lora" (the head and the adapters of `add_lora`).
        num_blocks: for last_n, in [1, depth].
        train: patterns of parameter names that train, too; `*` stands for anything.
        freeze: patterns of parameter names that do not train.

    Returns:
        The counts of trained and frozen parameters.

    Raises:
        RequestError: an unknown mode, blocks or attention that the network does not have, a pattern that matches
            nothing, a parameter matched by `train` and `freeze`, or nothing left to train.
    """
    trained = _trained_names(model, mode, num_blocks, train, freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    model.eval_parts = _parts_at_rest(model, trained)
    model.train(model.training)
    tuned = _count(model, trained)
    model.boundary = tuned.boundary
    return tuned


def count_tuning(
    model: Backbone,
    mode: str,
    *,
    num_blocks: int | None = None,
    train: Sequence[str] = (),
    freeze: Sequence[str] = (),
) -> Tuned:
    """Return what `apply_tuning` would, and raise what it would, without changing the network.

    Args:
        model: the network with its new head.
        mode: as there, like all that follow.
        num_blocks: for last_n.
        train: patterns of parameter names.
        freeze: patterns of parameter names.

    Raises:
        RequestError: see `apply_tuning`.
    """
    return _count(model, _trained_names(model, mode, num_blocks, train, freeze))


def _count(model: Backbone, trained: Collection[str]) -> Tuned:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    num_trained = sum(sizes[name] for name in trained)
    return Tuned(num_trained, sum(sizes.values()) - num_trained, boundary_of(model, trained))


def _trained_names(
    model: Backbone, mode: str, num_blocks: int | None, train: Sequence[str], freeze: Sequence[str]
) -> set[str]:
    """Return the names of the parameters that train, or say why there is no such choice."""
    chosen = _of_mode(model, mode, num_blocks)
    added, removed = _matches(model, "train", train), _matches(model, "freeze", freeze)
    both = sorted(added.keys() & removed.keys())
    if both:
        name = both[0]
        raise RequestError(
            f"parameter {name!r} is matched by {added[name]!r} of tuning.train and {removed[name]!r} of tuning.freeze; "
            "make the patterns agree"
        )
    frozen_base = [name for name in added if mode == "lora" and ".lora_" not in name and not name.startswith("head.")]
    if frozen_base:
        raise RequestError(
            f"tuning.train matches {frozen_base[0]!r}, but with tuning.mode lora the head and the adapters train: "
            "an adapter's file has no place for others; use tuning.lora.target_modules or another mode"
        )
    chosen = (chosen | added.keys()) - removed.keys()
    if not chosen:
        raise RequestError("no parameter of this network trains; choose another tuning.mode or fewer tuning.freeze")
    return chosen


def _of_mode(model: Backbone, mode: str, num_blocks: int | None) -> set[str]:
    """Return what a mode trains without patterns."""
    known = (*MODES, *ADDED_TUNING_MODES)
    if mode not in known:
        raise RequestError(f"tuning.mode {mode!r} is not one of {', '.join(known)}{did_you_mean(mode, known)}")
    names = [name for name, _ in model.named_parameters()]
    if mode in ADDED_TUNING_MODES:
        return _of_added(mode, model, names)
    head = {name for name in names if name.startswith("head.")}
    if mode in ("full", "linear_probe"):
        return set(names) if mode == "full" else head
    if mode == "last_n":
        depth = model.config.depth
        if num_blocks is None or not 1 <= num_blocks <= depth:
            raise RequestError(f"tuning.num_blocks is {num_blocks}; this network has {depth} blocks, give 1 to {depth}")
        # parameter_depth is 0 for the embedding, i + 1 for block i and more for what follows the blocks.
        return {name for name in names if model.parameter_depth(name) > depth - num_blocks}
    if mode == "bias":
        return head | {name for name in names if name.endswith("bias")}
    if mode == "norm":
        return head | _norms(model)
    return head | (_attention(names) if mode == "attention" else _adapters(names))


def _of_added(mode: str, model: Backbone, names: Sequence[str]) -> set[str]:
    """Return what a mode of the program's own trains.

    Raises:
        RequestError: it names what the network does not have.
    """
    chosen = set(ADDED_TUNING_MODES[mode](model))
    strange = sorted(chosen - set(names))
    if strange:
        hint = did_you_mean(strange[0], names)
        raise RequestError(f"tuning.mode {mode} names {strange[0]!r}, which this network does not have{hint}")
    return chosen


def _norms(model: Backbone) -> set[str]:
    """Return the parameters of every norm, found by what it is rather than by its name."""
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    return {f"{norm}.{own}" for norm in norms for own, _ in model.get_submodule(norm).named_parameters()}


def _attention(names: Collection[str]) -> set[str]:
    """Return the attention of every block with the positions, as DeiT's `--attn-only`.

    Raises:
        RequestError: the blocks have one projection for attention and MLP.
    """
    layers = {name for name in names if name.startswith("blocks.") and ".attn." in name}
    if not layers:
        raise RequestError(
            "the blocks of this network have one projection for attention and MLP, so tuning.mode attention has "
            "nothing to choose; use full, last_n or lora"
        )
    return layers | {name for name in names if name == "pos_embed" or name.startswith("rope.")}


def _adapters(names: Collection[str]) -> set[str]:
    """Return the parameters that `add_lora` put in.

    Raises:
        RequestError: it has not been called.
    """
    adapters = {name for name in names if ".lora_" in name}
    if not adapters:
        raise RequestError("tuning.mode lora trains adapters and this network has none; call add_lora(model) first")
    return adapters


def _matches(model: Backbone, option: str, patterns: Sequence[str]) -> dict[str, str]:
    """Return parameter name -> the first pattern that matches it.

    Raises:
        RequestError: a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    found: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise RequestError(
                f"pattern {pattern!r} of tuning.{option} matches no parameter of this network"
                f"{did_you_mean(pattern, names, limit=1)}; names are such as {names[0]}, {names[-1]}, "
                "and * stands for anything"
            )
        for name in matched:
            found.setdefault(name, pattern)
    return found


def _parts_at_rest(model: Backbone, trained: Collection[str]) -> frozenset[str]:
    """Return the parts whose noise would reach no parameter that learns from it."""
    learning = {".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]) for name in trained}
    start_learns = any(model.parameter_depth(name) <= 1 for name in trained)
    learns = {f"blocks.{index}": f"blocks.{index}" in learning for index in range(len(model.blocks))}
    for part, module in model.named_children():
        if part in _INPUT_NOISE or part == "head_drop":
            learns[part] = start_learns if part in _INPUT_NOISE else "head" in learning
        elif part != "blocks" and any(True for _ in module.parameters()):
            learns[part] = part in learning
    return frozenset(part for part, itself in learns.items() if not itself)
