"""What is written and shown of every training step: figures of (configuration, step) apart from those of the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vit_finetune.common.machine import peak_memory_bytes
from vit_finetune.training.console import StepProgress
from vit_finetune.training.energy import EnergyMeter
from vit_finetune.training.journal import Journal
from vit_finetune.training.plan import TrainPlan

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class StepReport:
    """Writes the rows of training steps; a row's energy is what was used since the row before.

    Attributes:
        plan: of the run.
        accelerator: its trackers are told.
        metrics: the journal of figures that repeat.
        timing: the journal of those that do not.
        every: write a row every so many steps, and of the last.
    """

    plan: TrainPlan
    accelerator: Accelerator
    metrics: Journal
    timing: Journal
    every: int
    _meter: EnergyMeter = field(init=False)

    def __post_init__(self) -> None:
        self._meter = EnergyMeter(self.accelerator.device)

    def tell(
        self, bar: StepProgress, step: int, *, loss: float, grad_norm: float, waited: float, seconds: float
    ) -> None:
        """Tell of a step that was just done.

        Args:
            bar: what the person sees.
            step: steps done.
            loss: the mean over the global batch.
            grad_norm: before clipping; left out of the row where it is not finite.
            waited: seconds for the batch.
            seconds: in all.
        """
        plan = self.plan
        lr, rate = plan.lr_at(step - 1), plan.global_batch_size / seconds
        shown = {
            "loss": f"{loss:.4f}",
            "lr": f"{lr:.2e}",
            "images/s": f"{rate:.1f}",
            "data wait": f"{waited / seconds:.0%}",
        }
        bar.update(step, shown)
        if step % self.every and step != plan.num_steps:
            return
        row = {"step": step, "epoch": plan.epoch_at(step), "split": "train", "loss": loss, "lr": lr}
        if math.isfinite(grad_norm):
            row["grad_norm"] = grad_norm
        self.metrics.write(row)
        is_cuda = self.accelerator.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if is_cuda else peak_memory_bytes()
        timing = {"seconds": seconds, "images_per_second": rate, "data_wait_seconds": waited, "peak_memory_bytes": peak}
        self.timing.write({"step": step, **timing, **self._meter.row()})
        self.accelerator.log({f"train/{key}": row[key] for key in ("loss", "lr")}, step=step)
