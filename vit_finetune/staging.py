"""What a stage of a run trains with: the choice of parameters, their groups, the optimizer, and the wrapped network.

A layer that is unfrozen behind DDP's back gets another gradient on each process, so at the boundary of two stages the
network is unwrapped, the choice is changed, and both are wrapped again. The state of parameters that go on (moments,
counters) goes along; new ones start afresh.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.models import Backbone
from vit_finetune.training import (
    Progress,
    RunConsole,
    Stage,
    TrainPlan,
    group_table,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
)
from vit_finetune.training.sharding import is_wanted, shard
from vit_finetune.tuning import Tuned, apply_tuning, count_tuning
from vit_finetune.weights import own_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

# Where unwrapping gives back the network as it was; DeepSpeed, say, changes its parameters.
_UNWRAPS = {"NO", "MULTI_CPU", "MULTI_GPU"}


def _take_other_sizes(model: Backbone, enabled: bool) -> None:
    """Let a network take pictures of every size that patches divide, or what its config says; no parameter changes."""
    model.patch_embed.dynamic = enabled or model.config.dynamic_img_size


class Staging:
    """The network of a run, ready for the stage it is in.

    Args:
        config: of the run.
        model: the bare network; its adapters, if any, are in.
        plan: of the run.
        accelerator: of the run.

    Attributes:
        wrapped: the network as `fit` takes it; there once a stage was entered.
        optimizer: over what trains in this stage.
        tuned: the counts of trained and frozen parameters, stage by stage.

    Raises:
        RequestError: a stage's choice does not fit the network, or the network cannot be unwrapped between stages.
    """

    wrapped: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, config: Config, model: Backbone, plan: TrainPlan, accelerator: Accelerator) -> None:
        self._config, self._model, self._plan, self._accelerator = config, model, plan, accelerator
        self._stage: Stage | None = None
        self._shards = is_wanted(config.run.strategy)
        self._kept: Backbone | None = None
        kind = accelerator.distributed_type.value
        if len(plan.stages) > 1 and kind not in _UNWRAPS:
            raise RequestError(f"tuning.mode {config.tuning.mode} has stages, which {kind} does not allow; use full")
        self.tuned: list[Tuned] = [count_tuning(model, stage.mode, **self._choice(stage)) for stage in plan.stages]
        self._check_prefix(config.tuning.cache_prefix, kind)

    def _check_prefix(self, wanted: int | str, kind: str) -> None:
        """Refuse to keep what nothing frozen comes before, or what no process holds whole."""
        if isinstance(wanted, int) and not any(tuned.boundary for tuned in self.tuned):
            raise RequestError(
                f"tuning.cache_prefix {wanted} keeps what frozen blocks give, and with tuning.mode "
                f"{self._config.tuning.mode} the first block or what comes before it trains; use off"
            )
        if wanted != "off" and kind not in _UNWRAPS:
            raise RequestError(f"tuning.cache_prefix runs a part of the network, which {kind} does not allow; use off")

    def _choice(self, stage: Stage) -> dict[str, Any]:
        tuning = self._config.tuning
        return {"num_blocks": stage.num_blocks, "train": tuning.train, "freeze": tuning.freeze}

    def choose(self, stage: Stage) -> None:
        """Let the parameters of a stage train, and no others."""
        apply_tuning(self._model, stage.mode, **self._choice(stage))
        own_memory(self._model)

    def enter(self, stage: Stage) -> list[str]:
        """Make network and optimizer ready for a stage; return what to tell about it."""
        kept = {}
        if self._stage is not None:
            kept = optimizer_tensors(self.optimizer)
            self._unwrap()
        self.choose(stage)
        _take_other_sizes(self._model, bool(self._plan.sizes))
        if self._shards:
            self._kept = copy.deepcopy(self._model)  # sharding has no way back
        self.place(self._model)
        options = self._config.optimizer
        groups = parameter_groups(
            self._model,
            weight_decay=options.weight_decay,
            layer_decay=options.layer_decay,
            head_lr_scale=options.head_lr_scale,
        )
        optimizer = make_optimizer(
            groups,
            name=options.name,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=options.nesterov,
            betas=options.betas,
            eps=options.eps,
        )
        load_optimizer_tensors(optimizer, kept)
        if self._shards:  # Accelerate gives the precision; the processes come together in the sharded blocks
            self.wrapped = self._accelerator.prepare_model(self._model, evaluation_mode=True)
            self.optimizer = self._accelerator.prepare(optimizer)
        else:
            self.wrapped, self.optimizer = self._accelerator.prepare(self._model, optimizer)
        self._stage = stage
        return self._told(stage, groups)

    def place(self, model: Backbone) -> None:
        """Move a network, or its average, to where it trains: to the device, or in parts to those of all processes."""
        accelerator = self._accelerator
        if not self._shards:
            model.to(accelerator.device)
            return
        offload = self._config.run.fsdp_cpu_offload
        shard(model, device=accelerator.device, mixed_precision=accelerator.mixed_precision, cpu_offload=offload)

    def _unwrap(self) -> None:
        """Take the wrapping off and let go of it: DDP listens to gradients as long as it lives."""
        self._accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        del self.wrapped, self.optimizer
        self._accelerator.free_memory()

    def _told(self, stage: Stage, groups: list[dict[str, Any]]) -> list[str]:
        number = self._plan.stages.index(stage)
        lines = [f"groups   {line}" for line in group_table(groups, self._plan.peak_lr_at(stage.first_step))]
        if len(self._plan.stages) == 1:
            return lines
        tuned, end = self.tuned[number], self._plan.end_of(stage)
        what = stage.mode if stage.num_blocks is None else f"{stage.mode} of {stage.num_blocks}"
        return [
            f"stage    {number + 1} of {len(self._plan.stages)}, steps {stage.first_step + 1} to {end}: {what}, "
            f"{tuned.num_trained:,} parameters trained, {tuned.num_frozen:,} frozen",
            *lines,
        ]

    def run(
        self,
        train: Callable[..., Progress],
        progress: Progress,
        console: RunConsole,
        *,
        after_probe: Callable[[], None] = lambda: None,
    ) -> Progress:
        """Train stage by stage.

        Args:
            train: called as `train(wrapped, optimizer, progress=where the run stands, until=steps done when the stage
                is over)`; trains and returns where the run stands then. Stopping earlier ends the run.
            progress: where the run stands; its stage was entered.
            console: told of every stage that begins.
            after_probe: called where the head alone has trained and more begins to.

        Returns:
            Where the run stands at its end.
        """
        while progress.step < self._plan.num_steps:
            stage = self._plan.stage_at(progress.step)
            if stage != self._stage:
                console.say(*self.enter(stage))
            if progress.step == self._plan.probe_end > 0:
                after_probe()
            end = self._plan.end_of(stage)
            progress = train(self.wrapped, self.optimizer, progress=progress, until=end)
            if progress.step < end:
                break
        return progress

    def bare(self) -> Backbone:
        """Return the network without its wrapping, when all has been trained; the optimizer's memory is given back.

        One that was sharded comes back whole, with the weights that it had before: those of a checkpoint replace them.
        """
        bare = self._kept
        if bare is None:
            bare = self._accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        del self.wrapped, self.optimizer
        self._accelerator.free_memory()
        bare.to(self._accelerator.device)
        _take_other_sizes(bare, False)
        return bare

    def to_mapping(self) -> list[dict[str, int]]:
        """Return the counts of the stages as plain values."""
        return [asdict(tuned) for tuned in self.tuned]
