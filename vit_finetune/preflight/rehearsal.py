"""A dry run: one batch forward and backward as the plan says, and what an epoch, the memory and the disk come to."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vit_finetune.assembly import (
    add_adapters,
    build_model,
    make_objective,
    make_plan,
    preprocess_of,
    settle_metric,
    settle_micro_batch,
    train_transform_of,
)
from vit_finetune.common.errors import VitFinetuneError
from vit_finetune.common.machine import peak_memory_bytes
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.audit.findings import Example, Finding, found, printable
from vit_finetune.data.batch import Batch
from vit_finetune.data.loader import default_num_workers, train_batches
from vit_finetune.models import Backbone
from vit_finetune.readout_run.planning import ReadoutPlan
from vit_finetune.staging import Staging
from vit_finetune.training import TrainPlan, optimizer_tensors
from vit_finetune.training.micro_batches import is_out_of_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

_REPEATS = 3  # of the batch: the first one sets things up, the fastest of the others counts
_SPARE = 2  # checkpoints beside `keep_last`: the best one, and the one that is being written


class Rehearsal:
    """A dry run of a recipe.

    Args:
        config: of the run.
        splits: its pictures.
        accelerator: where it runs.

    Attributes:
        findings: what stands in the way.
        figures: what was measured, as JSON values.
        preprocess: of the checkpoint; None where the network could not be built.
    """

    def __init__(self, config: Config, splits: Splits, accelerator: Accelerator) -> None:
        self._config, self._splits, self._accelerator = _for_an_epoch(config), splits, accelerator
        self.findings: list[Finding] = []
        self.figures: dict[str, Any] = {}
        self.preprocess: PreprocessSpec | None = None
        try:
            self._run()
        except VitFinetuneError as error:
            self.findings += found("dry_run", [Example(printable(str(error)))])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.findings += found("memory", [Example("one batch", printable(str(error).splitlines()[0]))])

    def _run(self) -> None:
        config, splits, accelerator = self._config, self._splits, self._accelerator
        model, report = build_model(config, splits)
        self.preprocess = preprocess_of(config, model, report)
        self.figures |= {"device": str(accelerator.device), "mixed_precision": accelerator.mixed_precision}
        if config.tuning.mode == "readout":
            self._read(model)
            return
        add_adapters(config, model)
        model.set_grad_checkpointing(config.train.grad_checkpointing)
        settled, _ = settle_metric(config, splits)
        plan = make_plan(settled, splits, accelerator, network=model.config)
        self._objective = make_objective(config, splits, plan)
        staging = Staging(config, model, plan, accelerator)
        staging.choose(plan.stages[-1])  # the last stage trains most, so it needs most memory
        plan = settle_micro_batch(config, plan, model, accelerator, resuming=False)
        staging.enter(plan.stages[-1])
        for group in staging.optimizer.param_groups:
            group["lr"] = 0.0  # its state takes room as in a run, and no weight changes
        batch, loading = self._load(self.preprocess, plan)
        _reset_peak(accelerator.device)
        stepping = _fastest(lambda: self._step(staging.wrapped, staging.optimizer, batch), accelerator.device)
        self._tell_time(plan, loading / len(batch), stepping)
        self._tell_memory()
        weights = _bytes_of(model.state_dict())
        state = _bytes_of(optimizer_tensors(staging.optimizer))
        self._tell_disk((config.checkpoint.keep_last + _SPARE) * (weights + state) + weights)

    def _load(self, preprocess: PreprocessSpec, plan: TrainPlan) -> tuple[Batch, float]:
        """Return a micro-batch and the seconds that it took to decode and vary in this process."""
        size = plan.per_device_batch_size
        batches = train_batches(
            self._splits.train,
            train_transform_of(self._config, preprocess),
            seed=plan.seed,
            global_batch_size=size,
            per_device_batch_size=size,
            start_step=0,
            num_steps=2,
        )
        next(batches)  # the first one imports codecs
        started = time.perf_counter()
        (batch,) = next(batches)
        return batch, time.perf_counter() - started

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        """Make one step that changes nothing, and look whether its numbers are finite."""
        accelerator = self._accelerator
        batch = batch.to(accelerator.device)
        loss = self._objective.losses(model, batch, step=0, device=accelerator.device).mean()
        accelerator.backward(loss)
        trained = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # The first steps of float16 overflow on purpose, until the scaler has found its scale.
        is_scaled = accelerator.mixed_precision == "fp16"
        finite = bool(loss.isfinite()) and (is_scaled or all(bool(grad.isfinite().all()) for grad in trained))
        if not finite and not any(finding.code == "non_finite" for finding in self.findings):
            self.findings += found("non_finite", [Example(f"loss {loss.item():g} in {accelerator.mixed_precision}")])
        optimizer.step()
        optimizer.zero_grad()

    def _read(self, model: Backbone) -> None:
        """Measure a readout run: one pass without gradients, and the room of the features."""
        config, accelerator = self._config, self._accelerator
        plan = ReadoutPlan.of(config, model, self._splits, accelerator)
        model.to(accelerator.device).eval()
        images = torch.zeros(8, model.config.in_chans, *model.config.img_size, device=accelerator.device)
        _reset_peak(accelerator.device)

        @torch.inference_mode()
        def forward() -> None:
            with accelerator.autocast():
                model(images)

        seconds = _fastest(forward, accelerator.device) / len(images)
        count = sum(len(pictures) for _, pictures in self._splits.named())
        self.figures |= {"seconds_per_picture": seconds, "seconds_for_features": seconds * count}
        self._tell_memory()
        self.figures["feature_bytes"] = sum(plan.entry_bytes.values())
        self._tell_disk(_bytes_of(model.state_dict()))

    def _tell_time(self, plan: TrainPlan, loading: float, stepping: float) -> None:
        """Say what an epoch takes: `loading` seconds a picture, `stepping` seconds a micro-batch."""
        workers = self._config.data.num_workers
        if isinstance(workers, str):
            workers = default_num_workers(self._accelerator.device.type, plan.num_processes)
        steps = math.ceil(plan.num_train / plan.global_batch_size)
        compute = stepping * plan.gradient_accumulation_steps * steps
        data = loading * plan.num_train / max(1, workers)
        self.figures |= {
            "per_device_batch_size": plan.per_device_batch_size,
            "gradient_accumulation_steps": plan.gradient_accumulation_steps,
            "num_workers": workers,
            "seconds_per_epoch": max(compute, data) if workers else compute + data,
            "seconds_per_epoch_network": compute,
            "seconds_per_epoch_pictures": data,
        }

    def _tell_memory(self) -> None:
        device = self._accelerator.device
        if device.type == "cuda":
            self.figures["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
            self.figures["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        else:
            import psutil  # comes with accelerate

            self.figures["peak_memory_bytes"] = peak_memory_bytes()
            self.figures["memory_bytes"] = int(psutil.virtual_memory().total)

    def _tell_disk(self, need: int) -> None:
        """Compare what the run's folder will take with what there is."""
        run_dir = Path(self._config.run.dir).absolute()
        free = shutil.disk_usage(next(path for path in (run_dir, *run_dir.parents) if path.exists())).free
        self.figures |= {"disk_bytes": need, "disk_free_bytes": free}
        if need > free:
            note = f"{need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            self.findings += found("disk", [Example(printable(str(run_dir)), note)])


def _for_an_epoch(config: Config) -> Config:
    """Return the configuration of one epoch of fine-tuning where a budget would choose."""
    if config.train.budget is None:
        return config
    return Config.load(config, overrides=["train.epochs=1", "schedule.warmup_steps=0"])


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of the fastest but the first of some repeats."""
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _bytes_of(tensors: dict[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values() if isinstance(value, Tensor))
