"""Where a NaN or an infinity began: which pictures, which module, forward or backward.

Called once, when a run is about to stop: it repeats the micro-batches of the failed step on the bare model
and watches every module, so the loop itself pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vit_finetune.training.objective import TrainBatch
from vit_finetune.training.progress import FitOptions
from vit_finetune.training.sharding import local

if TYPE_CHECKING:
    from accelerate import Accelerator

_MAX_NAMES = 5


def explain_nonfinite(
    model: nn.Module,
    micro_batches: Sequence[TrainBatch],
    *,
    accelerator: Accelerator,
    options: FitOptions,
    step: int,
) -> list[str]:
    """Repeat a step and say where its first non-finite number appears.

    Args:
        model: the bare network; its gradients are overwritten.
        micro_batches: this process's part of the step.
        accelerator: for device and precision.
        options: what is minimised, and a name for the picture of an index.
        step: steps done before it.

    Returns:
        One line for each micro-batch in which something was found; one line that says so where nothing was.
    """
    found = []
    for batch in micro_batches:
        with accelerator.autocast():
            losses = partial(options.objective.losses, model, batch, step=step, device=accelerator.device)
            line = _explain_one(model, batch, losses, options.name_sample)
        if line is not None:
            found.append(f"process {accelerator.process_index}: {line}")
    return found or [f"process {accelerator.process_index}: nothing found when the step was repeated"]


def _explain_one(
    model: nn.Module, batch: TrainBatch, losses_of: Callable[[], Tensor], name_sample: Callable[[int], str]
) -> str | None:
    bad_modules: list[str] = []
    bad_parameters: list[str] = []
    model.zero_grad(set_to_none=True)
    handles = [
        module.register_forward_hook(_watch(name or "the network", bad_modules))
        for name, module in model.named_modules()
    ]
    try:
        losses = losses_of()
        torch.autograd.backward(losses.sum())
    finally:
        for handle in handles:
            handle.remove()
    bad_rows = (~torch.isfinite(losses)).nonzero().flatten().tolist() or range(len(losses))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all()):
            bad_parameters.append(name)
    if bad_modules:
        names = [name_sample(int(batch.indices[row])) for row in bad_rows]
        return f"the output of {bad_modules[0]} is the first that is not finite, for {_some(names)}"
    if bad_parameters:
        names = [name_sample(int(index)) for index in batch.indices]
        return f"the gradient of {bad_parameters[-1]} is the first that is not finite, for a batch of {_some(names)}"
    return None


def _watch(name: str, bad: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not bool(torch.isfinite(output).all()):
            bad.append(name)

    return hook


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
