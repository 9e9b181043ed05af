"""Parameter groups, and optimizers with their state as plain tensors.

The groups are ours, equal to timm's `param_groups_layer_decay` (which is the oracle in the tests): the
rate of a group is the plan's rate times layer_decay ** (depths below the head), and vectors, tokens and
position embeddings have no weight decay. The rate itself is written into the groups before each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models import Backbone
from vit_finetune.training.sharding import part_like

# timm's optimizers that a run here cannot have, by the beginning of the name.
_REFUSED = {
    "adahessian": "it needs second derivatives, which the training loop does not compute",
    "kron": "its state holds lists and a random generator, which a checkpoint here cannot",
    "bnb": "bitsandbytes keeps state that no test here has put back after a resume",
    "fused": "APEX keeps state that no test here has put back after a resume",
}
# Marks a plain number in an optimizer's state, which goes through the file as a tensor.
_NUMBER = ":number"


def parameter_groups(
    model: Backbone, *, weight_decay: float, layer_decay: float, head_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return the groups of all parameters that train, ordered from the embedding to the head.

    Args:
        model: the network; parameters with `requires_grad` false are left out.
        weight_decay: of matrices and kernels, per unit of learning rate.
        layer_decay: factor of the rate per depth below the head, in (0, 1].
        head_lr_scale: further factor of the rate of `head.weight` and `head.bias`, above 0.

    Returns:
        A dict a group: `params`, their `names`, `lr_scale`, `weight_decay`, and the group's own `name`.

    Raises:
        RequestError: no parameter trains.
    """
    no_decay = model.no_weight_decay()
    groups: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = model.parameter_depth(name)
        decays = parameter.ndim > 1 and name not in no_decay
        own_scale = head_lr_scale if name.startswith("head.") else 1.0
        if (depth, own_scale, decays) not in groups:
            groups[depth, own_scale, decays] = {
                "params": [],
                "names": [],
                "lr_scale": layer_decay ** (model.num_depths - 1 - depth) * own_scale,
                "weight_decay": weight_decay if decays else 0.0,
                "name": _group_name(depth, model.num_depths, own_scale, decays=decays),
            }
        groups[depth, own_scale, decays]["params"].append(parameter)
        groups[depth, own_scale, decays]["names"].append(name)
    if not groups:
        raise RequestError("no parameter of this network trains; choose another tuning.mode")
    return [groups[key] for key in sorted(groups)]


def _group_name(depth: int, num_depths: int, own_scale: float, *, decays: bool) -> str:
    places = {0: "embedding", num_depths - 1: "head"}
    place = places.get(depth, f"block {depth - 1}") + ("" if own_scale == 1 else f" x{own_scale:g}")
    return place if decays else f"{place}, no decay"


def group_table(groups: Sequence[Mapping[str, Any]], lr: float) -> list[str]:
    """Return the groups as lines of a table.

    Args:
        groups: of `parameter_groups`.
        lr: peak learning rate.
    """
    rows = [("group", "tensors", "values", "lr scale", "peak lr", "weight decay")]
    for group in groups:
        values = sum(parameter.numel() for parameter in group["params"])
        scale, decay = group["lr_scale"], group["weight_decay"]
        rows.append(
            (group["name"], f"{len(group['names'])}", f"{values:,}", f"{scale:.4g}", f"{lr * scale:.3g}", f"{decay:g}")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]


def make_optimizer(
    groups: list[dict[str, Any]],
    *,
    name: str,
    lr: float,
    momentum: float,
    nesterov: bool,
    betas: tuple[float, ...] | None,
    eps: float | None,
) -> torch.optim.Optimizer:
    """Return the optimizer over `groups`.

    adamw and sgd are torch's, with one kernel for all of a parameter's arithmetic where the device has it; every other
    name is timm's, with timm's defaults.

    Args:
        groups: of `parameter_groups`.
        name: "adamw", "sgd", or one of timm's names.
        lr: peak learning rate; `set_lr` writes the rate of each step.
        momentum: of sgd and of those of timm's optimizers that have it, in [0, 1).
        nesterov: of sgd; needs momentum.
        betas: None takes the optimizer's own.
        eps: None takes the optimizer's own.

    Raises:
        RequestError: an unknown name, one that a run here cannot have, or an option that the optimizer does not have.
    """
    if nesterov and name != "sgd":
        raise RequestError(f"optimizer.nesterov is for optimizer.name: sgd; the name is {name}")
    groups = [dict(group) for group in groups]  # torch writes its defaults into them
    options: dict[str, Any] = {key: value for key, value in (("betas", betas), ("eps", eps)) if value is not None}
    if name not in ("adamw", "sgd"):
        return _timm_optimizer(groups, name=name, lr=lr, momentum=momentum, options=options)
    _refuse_options(name, options, {"betas": 2, "eps": 1} if name == "adamw" else {})
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one kernel for all of a parameter's arithmetic
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=fused, **options)
    if nesterov and momentum == 0:
        raise RequestError("optimizer.nesterov needs optimizer.momentum above 0; got 0")
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)


def _refuse_options(name: str, options: Mapping[str, Any], taken: Mapping[str, int]) -> None:
    """Refuse options that an optimizer does not have; `taken` says how many numbers each one takes.

    Raises:
        RequestError: one would be ignored, or has another number of values.
    """
    for key, value in options.items():
        if key not in taken:
            raise RequestError(f"optimizer.name {name} has no {key}; leave optimizer.{key} out")
        if isinstance(value, tuple) and len(value) != taken[key]:
            raise RequestError(f"optimizer.betas has {len(value)} numbers; optimizer.name {name} takes {taken[key]}")


def _timm_optimizer(
    groups: list[dict[str, Any]], *, name: str, lr: float, momentum: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return one of timm's optimizers, made by timm.

    Raises:
        RequestError: the name is unknown or refused, an option is not the optimizer's, or timm cannot make it here.
    """
    from timm.optim import (  # type: ignore[attr-defined]
        create_optimizer_v2,
        get_optimizer_info,
        list_optimizers,
    )

    known = [str(other) for other in list_optimizers()]  # adamw and sgd among them
    if name not in known:
        hint = did_you_mean(name, known) or "; try adamw, sgd, lion, lamb, adopt or muon"
        raise RequestError(f"optimizer.name {name!r} is neither adamw, sgd nor one of timm's optimizers{hint}")
    for start, reason in _REFUSED.items():
        if name.startswith(start):
            raise RequestError(f"optimizer.name {name} cannot be used here: {reason}; take adamw, lion or adopt")
    info = get_optimizer_info(name)
    takes = (("betas", info.num_betas, info.has_betas), ("eps", 1, info.has_eps))
    _refuse_options(name, options, {key: count for key, count, has in takes if has})
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=name, lr=lr, momentum=momentum, **options)
    except (AssertionError, ImportError, RuntimeError, ValueError) as error:
        raise RequestError(f"optimizer.name {name} cannot be made here: {error}") from None
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write the rate of the coming step into every group, times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors, keyed `parameter name/state name` or `group name/step`.

    Everything else of an optimizer (rates, decays) follows from the configuration and the step. A plain number among
    the state is a tensor here, its key marked.
    """
    tensors = {}
    for group in optimizer.param_groups:
        states = {name: optimizer.state.get(p, {}) for name, p in zip(group["names"], group["params"], strict=True)}
        if "step" in group:  # of optimizers that count once for a whole group
            states[group["name"]] = {"step": group["step"]}
        for name, state in states.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                elif value is not None:
                    tensors[f"{name}/{key}{_NUMBER}"] = torch.tensor(value, dtype=_exact(value))
    return tensors


def _exact(value: bool | int | float) -> torch.dtype:
    """Return the dtype that holds a plain number as it is."""
    kinds: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}
    return kinds[type(value)]


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, on each parameter's device; what is not in there starts afresh.

    Raises:
        RequestError: a tensor belongs to no parameter or group of this optimizer.
    """
    groups = {group["name"]: group for group in optimizer.param_groups}
    owners: dict[str, tuple[nn.Parameter, dict[str, Any]]] = {
        name: (parameter, group)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        if owner in groups:
            groups[owner][key.removesuffix(_NUMBER)] = tensor.item() if key.endswith(_NUMBER) else tensor.clone()
            continue
        if owner not in owners:
            raise RequestError(f"the optimizer state holds {name!r}, but no parameter {owner!r} trains in this run")
        parameter, group = owners[owner]
        if key.endswith(_NUMBER):
            optimizer.state[parameter][key.removesuffix(_NUMBER)] = tensor.item()
            continue
        # As torch does: a step counter stays on the CPU, except for fused kernels, which want it beside the parameter.
        device = parameter.device if group.get("fused") and parameter.is_cuda else "cpu"
        optimizer.state[parameter][key] = tensor.to(device) if key == "step" else part_like(tensor, parameter)
