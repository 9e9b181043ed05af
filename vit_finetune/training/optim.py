"""Parameter groups and optimizers.

The groups are ours, equal to timm's `param_groups_layer_decay` (which is the oracle in the tests): the
rate of a group is the plan's rate times layer_decay ** (depths below the head), and vectors, tokens and
position embeddings have no weight decay. The rate itself is written into the groups before each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import Backbone

OPTIMIZERS = ("adamw", "sgd")


def parameter_groups(model: Backbone, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return the groups of all parameters that train, ordered from the embedding to the head.

    Args:
        model: the network; parameters with `requires_grad` false are left out.
        weight_decay: of matrices and kernels, per unit of learning rate.
        layer_decay: factor of the rate per depth below the head, in (0, 1].

    Returns:
        A dict a group: `params`, their `names`, `lr_scale`, `weight_decay`.

    Raises:
        RequestError: no parameter trains.
    """
    no_decay = model.no_weight_decay()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = model.parameter_depth(name)
        decays = parameter.ndim > 1 and name not in no_decay
        if (depth, decays) not in groups:
            groups[depth, decays] = {
                "params": [],
                "names": [],
                "lr_scale": layer_decay ** (model.num_depths - 1 - depth),
                "weight_decay": weight_decay if decays else 0.0,
            }
        groups[depth, decays]["params"].append(parameter)
        groups[depth, decays]["names"].append(name)
    if not groups:
        raise RequestError("no parameter of this network trains; choose another tuning.mode")
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    groups: list[dict[str, Any]],
    *,
    name: str,
    lr: float,
    momentum: float,
    nesterov: bool,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """Return the optimizer over `groups`.

    Args:
        groups: of `parameter_groups`.
        name: "adamw" or "sgd".
        lr: peak learning rate; `set_lr` writes the rate of each step.
        momentum: of SGD, in [0, 1).
        nesterov: of SGD; needs momentum.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        RequestError: an unknown name, or nesterov without momentum.
    """
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")  # one kernel for all of a parameter's arithmetic
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
    if name == "sgd":
        if nesterov and momentum == 0:
            raise RequestError("optimizer.nesterov needs optimizer.momentum above 0; got 0")
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
    raise RequestError(f"optimizer.name {name!r} is not one of {', '.join(OPTIMIZERS)}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write the rate of the coming step into every group, times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors, keyed `parameter name/state name`.

    Everything else of an optimizer (rates, decays) follows from the configuration and the step.
    """
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, on each parameter's device.

    Raises:
        RequestError: a tensor belongs to no parameter of this optimizer.
    """
    parameters: dict[str, nn.Parameter] = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        if owner not in parameters:
            raise RequestError(f"the optimizer state holds {name!r}, but no parameter {owner!r} trains in this run")
        parameter = parameters[owner]
        # A step counter stays where the optimizer made it: on the CPU, or for fused CUDA kernels beside the parameter.
        device = "cpu" if key == "step" and not parameter.is_cuda else parameter.device
        optimizer.state[parameter][key] = tensor.to(device)
