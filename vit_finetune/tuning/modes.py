"""Which parameters of a network train: full, linear probe, or the last blocks.

Not how they train: learning rates by depth are the optimizer's (`training/optim.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models import Backbone

MODES = ("full", "linear_probe", "last_n")


@dataclass(frozen=True)
class Tuned:
    """How many parameters train and how many are frozen."""

    num_trained: int
    num_frozen: int


def apply_tuning(model: Backbone, mode: str, *, num_blocks: int | None = None) -> Tuned:
    """Set `requires_grad` of every parameter for a tuning mode.

    Args:
        model: the network with its new head; its parameters are changed.
        mode: "full" (all), "linear_probe" (the head alone), or "last_n" (the last `num_blocks` blocks
            and everything between them and the output).
        num_blocks: for last_n, in [1, depth].

    Returns:
        The counts of trained and frozen parameters.

    Raises:
        RequestError: an unknown mode, or a number of blocks that the network does not have.
    """
    if mode not in MODES:
        raise RequestError(f"tuning.mode {mode!r} is not one of {', '.join(MODES)}{did_you_mean(mode, MODES)}")
    depth = model.config.depth
    if mode == "last_n" and (num_blocks is None or not 1 <= num_blocks <= depth):
        raise RequestError(f"tuning.num_blocks is {num_blocks}; this network has {depth} blocks, give 1 to {depth}")
    num_trained = num_frozen = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trains(name, model, mode, num_blocks or 0))
        if parameter.requires_grad:
            num_trained += parameter.numel()
        else:
            num_frozen += parameter.numel()
    return Tuned(num_trained, num_frozen)


def _trains(name: str, model: Backbone, mode: str, num_blocks: int) -> bool:
    if mode == "full":
        return True
    if mode == "linear_probe":
        return name.startswith("head.")
    # parameter_depth is 0 for the embedding, i + 1 for block i and more for what follows the blocks.
    return model.parameter_depth(name) > model.config.depth - num_blocks
