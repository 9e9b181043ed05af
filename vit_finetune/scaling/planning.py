"""Whether a recipe fits on so many processes with so much memory each, and with what micro-batch, before anything runs.

Nothing is loaded where the recipe names its architecture, and no picture is opened.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from vit_finetune.assembly import add_adapters
from vit_finetune.assembly.network import network_options
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.models import Backbone, create_model, replace_head
from vit_finetune.scaling.footprint import Footprint, footprint
from vit_finetune.scaling.layouts import Share, share_of
from vit_finetune.training import check_shares, make_optimizer, parameter_groups
from vit_finetune.training.plan import largest_share
from vit_finetune.tuning import apply_tuning
from vit_finetune.weights import from_pretrained

_STAGED = ("lp_ft", "gradual")  # their last stage trains all
_STRAIGHT_FROM = 4  # pictures; from there on a moment's memory grows evenly with their number
_MANY = (64, 128)
_OVERHEAD = 10**9  # bytes that CUDA, cuBLAS and NCCL take beside the tensors


@dataclass(frozen=True)
class ScalePlan:
    """How a strategy would run.

    Attributes:
        fits: whether it fits into the memory.
        per_device_batch_size: pictures that a process takes at once; the fewest there can be where it does not fit.
        gradient_accumulation_steps: micro-batches of a process in a step.
        share: what a process holds and sends.
    """

    fits: bool
    per_device_batch_size: int
    gradient_accumulation_steps: int
    share: Share

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {**asdict(self), "peak_bytes": self.share.peak}


class Growth:
    """The memory of a step as its micro-batch grows: counted at a few sizes, straight lines between and beyond them.

    A step's peak is the largest of its moments, each of which grows by a straight line: with few pictures the end of
    the backward pass, where all gradients are there, with many the end of the forward pass. So the lines between
    sizes never say too little.

    Args:
        count: counts a micro-batch of so many pictures.
        straight_from: pictures from which on the lines are straight; fewer are counted.
    """

    def __init__(self, count: Callable[[int], Footprint], *, straight_from: int = _STRAIGHT_FROM) -> None:
        few = (straight_from, 2 * straight_from)
        self._count, self._sizes = cache(count), [*few, *(size for size in _MANY if size > few[1])]

    def at(self, size: int) -> Footprint:
        """Return what a step of so many pictures at once holds."""
        if size < self._sizes[0]:
            return self._count(size)
        place = min(max(bisect(self._sizes, size), 1), len(self._sizes) - 1)
        few, many = map(self._count, self._sizes[place - 1 : place + 1])
        more, slope = size - few.micro_batch, many.passes - few.passes
        return replace(few, micro_batch=size, passes=few.passes + slope * more // (many.micro_batch - few.micro_batch))


def network_on_paper(config: Config, num_classes: int) -> Backbone:
    """Return the recipe's network without weights, on the meta device, with what trains chosen.

    Args:
        config: of the run.
        num_classes: outputs of the new head.

    Raises:
        RequestError: the recipe trains no network.
    """
    tuning, options = config.tuning, network_options(config)
    if tuning.mode == "readout":
        raise RequestError("tuning.mode readout trains no network; there is nothing to plan")
    if config.model.name is not None:
        with torch.device("meta"):
            model = replace_head(create_model(config.model.name, **options), num_classes)
    else:
        source = config.model.pretrained or ""  # the configuration refuses neither name nor weights
        model = from_pretrained(source, num_classes=num_classes, **options)[0].to("meta")
    add_adapters(config, model)
    mode = "full" if tuning.mode in _STAGED else tuning.mode
    apply_tuning(model, mode, num_blocks=tuning.num_blocks, train=tuning.train, freeze=tuning.freeze)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    return model


def growth_of(config: Config, *, num_classes: int, mixed_precision: str) -> Growth:
    """Count the memory of a recipe's training step at a few sizes.

    Args:
        config: of the run.
        num_classes: outputs of the new head.
        mixed_precision: no, bf16 or fp16.
    """

    def count(size: int) -> Footprint:
        model = network_on_paper(config, num_classes)
        return footprint(
            model,
            blocks=list(model.blocks),
            optimizer_of=lambda network: _optimizer(config, network),
            image_size=(model.config.in_chans, *model.config.img_size),
            micro_batch=size,
            mixed_precision=mixed_precision,
            keeps_average=config.train.ema_decay is not None,
        )

    return Growth(count, straight_from=_straight_from(network_on_paper(config, num_classes)))


def _straight_from(model: Backbone) -> int:
    """Return the pictures whose tokens outnumber the rows of every weight: there LayerScale goes into all of them."""
    rows = max(layer.in_features for layer in model.blocks.modules() if isinstance(layer, nn.Linear))
    tokens = model.config.num_tokens * (1 - model.config.patch_drop_rate)
    has_factors = any("gamma" in name for name, _ in model.blocks.named_parameters())
    return max(_STRAIGHT_FROM, int(rows // tokens) + 1) if has_factors else _STRAIGHT_FROM


def _optimizer(config: Config, model: Any) -> torch.optim.Optimizer:
    options = config.optimizer
    optimizer = make_optimizer(
        parameter_groups(model, weight_decay=options.weight_decay, layer_decay=options.layer_decay),
        name=options.name,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        betas=options.betas,
        eps=options.eps,
    )
    for group in optimizer.param_groups:
        if "foreach" in group:  # as on a GPU, where all parameters of a group are updated at once
            group["foreach"] = True
    return optimizer


def scale_plan(
    growth: Growth, config: Config, strategy: str, *, num_processes: int, memory: int, mixed_precision: str
) -> ScalePlan:
    """Return the largest micro-batch that fits, and what it comes to.

    Args:
        growth: of `growth_of`.
        config: of the run: its global batch, and whether pairs are mixed.
        strategy: ddp or fsdp.
        num_processes: that share a step.
        memory: bytes of each.
        mixed_precision: no, bf16 or fp16.

    Raises:
        RequestError: the global batch leaves a process without a picture.
    """
    batch, in_pairs = config.train.global_batch_size, config.train.mixes
    check_shares(batch, num_processes, in_pairs=in_pairs)
    share, least = largest_share(batch, num_processes, in_pairs=in_pairs), 2 if in_pairs else 1
    parts = 0
    while True:
        parts += 1
        size = max(least, least * -(-share // (least * parts)))
        accumulation = -(-share // size)
        taken = share_of(
            growth.at(size),
            strategy,
            num_processes=num_processes,
            accumulation=accumulation,
            compute_bytes=4 if mixed_precision == "no" else 2,
        )
        fits = taken.peak + _OVERHEAD <= memory
        if fits or size <= least:
            return ScalePlan(fits, size, accumulation, taken)


def even_world_sizes(global_batch_size: int, num_processes: int, *, in_pairs: bool = False) -> list[int]:
    """Return the nearest numbers of processes, below and above, that share a step evenly; one of them may be the given.

    Args:
        global_batch_size: pictures per step over all processes.
        num_processes: wanted.
        in_pairs: neighbours are mixed and stay together.
    """
    units = global_batch_size // 2 if in_pairs else global_batch_size
    even = [count for count in range(1, units + 1) if units % count == 0]
    below = [count for count in even if count <= num_processes]
    above = [count for count in even if count >= num_processes]
    return sorted({*below[-1:], *above[:1]})
