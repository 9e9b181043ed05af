"""The only training loop.

A step is a pure function of (configuration, step, state): its batch, its learning rate and its noise follow
from the step's number, so nothing but tensors and that number has to be saved. Gradients are exact for any
split of the global batch: each micro-batch's summed loss is scaled by world_size / pictures in the step, which undoes
the averaging over processes. Accelerate gives device, precision, wrapping, clipping and reduction;
loaders, schedule and accumulation are ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RunStopped, WorkError
from vit_finetune.common.seeding import derive_seed
from vit_finetune.evaluation import EvalResult
from vit_finetune.training import checkpoint as store
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.console import RunConsole, StepProgress
from vit_finetune.training.journal import Journal
from vit_finetune.training.micro_batches import MicroBatches, cut
from vit_finetune.training.nonfinite import explain_nonfinite
from vit_finetune.training.objective import TrainBatch
from vit_finetune.training.optim import optimizer_tensors, set_lr
from vit_finetune.training.plan import TrainPlan
from vit_finetune.training.processes import gathered_lists, on_main
from vit_finetune.training.progress import AVERAGE, FitOptions, Progress
from vit_finetune.training.reporting import StepReport
from vit_finetune.training.saving import Saver
from vit_finetune.training.sharding import is_sharded, whole
from vit_finetune.training.stopping import StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator

# A scaler halves its scale at each overflow, so a healthy run needs a few skips; this many in a row are a divergence.
_MAX_SKIPPED_STEPS = 20


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    accelerator: Accelerator,
    plan: TrainPlan,
    options: FitOptions,
    batches: Iterator[Sequence[TrainBatch]],
    evaluate: Callable[[nn.Module], EvalResult] | None,
    run_dir: Path,
    console: RunConsole,
    progress: Progress | None = None,
    until: int | None = None,
    average: WeightAverage | None = None,
    stop: StopRequest | None = None,
) -> Progress:
    """Train from `progress.step` to `until`.

    Args:
        model: prepared by `accelerator`; called as `model(images, sample_seeds=...)`.
        optimizer: prepared by `accelerator`, over groups of `optim.parameter_groups`.
        accelerator: with gradient accumulation of 1: accumulation happens here.
        plan: the derived numbers.
        options: what else was configured.
        batches: for each step to come, this process's micro-batches.
        evaluate: scores a bare network on the val split on all processes; None without one.
        run_dir: where metrics, timing and checkpoints go.
        console: what the person sees.
        progress: where the run stands; None starts at step 0.
        until: steps done at which to stop, the end of a stage; None goes on to the plan's last step.
        average: of the weights, updated after each step and scored beside them; None keeps none.
        stop: what may ask for an early end; None knows nobody who does.

    Returns:
        Where the run stands then; before `until` where patience ended it.

    Raises:
        WorkError: a loss or gradient is not finite (the checkpoints before it are whole), or the disk is full.
        RunStopped: `stop` asked for it; the last step is saved.
    """
    at = progress or Progress()
    loop = _Loop(
        model, optimizer, accelerator, plan, options, evaluate, run_dir, console, at, average, stop or StopRequest()
    )
    last = plan.num_steps if until is None else until
    with console.progress(num_steps=plan.num_steps, done=loop.at.step) as bar, loop.saver:
        loop.run(batches, bar, last)
    return loop.at


@dataclass
class _Loop:
    """The state of `fit` between steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    plan: TrainPlan
    options: FitOptions
    evaluate: Callable[[nn.Module], EvalResult] | None
    run_dir: Path
    console: RunConsole
    at: Progress
    average: WeightAverage | None
    stop: StopRequest

    def __post_init__(self) -> None:
        self.bare: nn.Module = self.accelerator.unwrap_model(self.model)
        is_main = self.accelerator.is_main_process
        self.checkpoints = self.run_dir / "checkpoints"
        self.metrics = Journal(self.run_dir / "metrics.jsonl", enabled=is_main)
        self.timing = Journal(self.run_dir / "timing.jsonl", enabled=is_main)
        every = self.options.log_every_steps
        self.report = StepReport(self.plan, self.accelerator, self.metrics, self.timing, every)
        self.saver = Saver(self.checkpoints, self.options, self.stop)
        self.saved_at = time.monotonic()
        self.must_stop = False  # after this step, on every process alike
        self.num_images: float = self.plan.global_batch_size  # of the step, all processes; less where some are bad
        least = 1 if self.options.objective.mixing is None else 2
        self.micro = MicroBatches(self.plan, least=least, in_step=is_sharded(self.bare))

    def run(self, batches: Iterator[Sequence[TrainBatch]], bar: StepProgress, last: int) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)  # gradients that a caller left are no part of the first step
        while self.at.step < last and not self.is_over():
            started = time.monotonic()
            micro_batches = next(batches)
            waited = time.monotonic() - started
            if self.options.count_images is not None:
                self.num_images = self.options.count_images(micro_batches)
            self.micro.begin(self.at.step)
            loss, grad_norm = self.train_step(self.micro.as_many(micro_batches))
            seconds = time.monotonic() - started
            self.report.tell(bar, self.at.step, loss=loss, grad_norm=grad_norm, waited=waited, seconds=seconds)
            if self.plan.evaluates_at(self.at.step):
                self.score_and_compare()
            is_due = self.plan.saves_at(self.at.step) or self.at.best_step == self.at.step or self.is_over()
            self.stop.took(step=time.monotonic() - started + seconds * self.plan.growth_after(self.at.step))
            if is_due or self.must_stop or self.minutes_are_over():
                self.save()
            if self.must_stop and self.at.step < self.plan.num_steps:
                on_main(self.accelerator, self.saver.wait)
                raise RunStopped(self.why_stopped(), is_of_all=True)
        on_main(self.accelerator, self.saver.wait)

    def is_over(self) -> bool:
        """Say whether patience has ended the run."""
        return self.options.patience is not None and self.at.num_not_better >= self.options.patience

    def train_step(self, micro_batches: Sequence[TrainBatch]) -> tuple[float, float]:
        """Do one optimizer step; return the global batch's mean loss and the norm of its gradient."""
        set_lr(self.optimizer, self.plan.lr_at(self.at.step))
        loss_sum = self.micro.run(
            lambda size, synchronised: self.gradients(cut(micro_batches, size), synchronised=synchronised),
            accelerator=self.accelerator,
            run_dir=self.run_dir,
            forget=lambda: self.optimizer.zero_grad(set_to_none=True),
            tell=self.tell_halved,
        )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.options.max_grad_norm or math.inf  # an infinite limit measures and changes nothing
        grad_norm = self.accelerator.clip_grad_norm_(parameters, limit)
        told = torch.stack([loss_sum.detach(), torch.full_like(loss_sum, self.stop.is_wanted())])
        if self.accelerator.num_processes > 1:
            told = self.accelerator.reduce(told, reduction="sum")
        loss, stops = told.tolist()
        self.must_stop = stops > 0
        mean_loss, norm = loss / self.num_images, float(grad_norm)
        self.update(mean_loss, norm, micro_batches)
        return mean_loss, norm

    def gradients(self, micro_batches: Sequence[TrainBatch], *, synchronised: bool) -> Tensor:
        """Add up the gradients of a step, over the processes too if synchronised; return this one's summed loss."""
        # Element dropout is the one draw from torch's generator; it repeats at a fixed number of processes.
        torch.manual_seed(derive_seed(self.plan.seed, "dropout", self.at.step, self.accelerator.process_index))
        scale = self.accelerator.num_processes / self.num_images
        loss_sum = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(micro_batches, start=1):
            is_last = synchronised and number == len(micro_batches)
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = self.options.objective.losses(
                    self.model, batch, step=self.at.step, device=self.accelerator.device
                )
                loss = losses.sum()
                self.accelerator.backward(loss * scale)
            loss_sum += loss.detach()
        return loss_sum

    def tell_halved(self, too_large: int) -> None:
        """Say that micro-batches of `too_large` pictures did not fit."""
        step, size = self.at.step + 1, self.micro.size
        self.timing.write({"step": step, "out_of_memory": too_large, "per_device_batch_size": size})
        self.console.say(
            f"step {step}: out of memory with {too_large} pictures at once; the step starts over with {size}, the "
            "global batch stays"
        )

    def update(self, loss: float, grad_norm: float, micro_batches: Sequence[TrainBatch]) -> None:
        """Apply the gradient, or stop before it can spoil the weights."""
        skipped = 0
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            can_skip = self.accelerator.scaler is not None and math.isfinite(loss)
            skipped = self.at.skipped_in_a_row + 1
            if not can_skip or skipped >= _MAX_SKIPPED_STEPS:
                raise WorkError(self.reason(loss, grad_norm, micro_batches), is_of_all=True)
            self.console.say(f"step {self.at.step + 1}: fp16 overflow, the scaler skips this step ({skipped} in a row)")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.bare)
        self.at = replace(self.at, step=self.at.step + 1, skipped_in_a_row=skipped)

    def reason(self, loss: float, grad_norm: float, micro_batches: Sequence[TrainBatch]) -> str:
        """Say what is not finite, where it began and which checkpoint is whole; the same on every process."""
        at = {"accelerator": self.accelerator, "options": self.options, "step": self.at.step}
        found = explain_nonfinite(self.bare, micro_batches, **at)
        found = gathered_lists(self.accelerator, found)
        on_main(self.accelerator, self.saver.join)
        last, _ = store.newest_whole(self.checkpoints)
        kept = "there is no whole checkpoint yet" if last is None else f"the checkpoint of step {last} is whole"
        return (
            f"step {self.at.step + 1} stopped: loss {loss}, gradient norm {grad_norm}; {'; '.join(found)}; {kept}; "
            "lower optimizer.lr, or look at those pictures"
        )

    def score_and_compare(self) -> None:
        """Evaluate, write the figures and remember the best step."""
        step = self.at.step
        if self.evaluate is None:
            if step == self.plan.num_steps:  # nothing selects, so the last step is the result, averaged if asked for
                self.at = replace(self.at, best_step=step, best_is_average=self.average is not None)
            return
        started, metric = time.monotonic(), self.options.metric
        metrics = self.evaluate(self.bare).metrics
        if not math.isfinite(metrics["loss"]):
            raise WorkError(f"the val loss after step {step} is {metrics['loss']}; lower optimizer.lr", is_of_all=True)
        if self.average is not None:
            averaged = self.evaluate(self.average.model).metrics
            metrics = {**metrics, **{f"{AVERAGE}{name}": value for name, value in averaged.items()}}
        self.metrics.write({"step": step, "epoch": self.plan.epoch_at(step), "split": "val", **metrics})
        self.timing.write({"step": step, "evaluation_seconds": time.monotonic() - started})
        self.accelerator.log({f"val/{key}": value for key, value in metrics.items()}, step=step)
        counts = step > self.plan.stages[-1].first_step
        self.at = self.at.compared(metric, metrics[metric], metrics.get(AVERAGE + metric), counts=counts)
        mark = ""
        if self.at.best_step == step:
            mark = "  (best, the averaged weights)" if self.at.best_is_average else "  (best)"
        told = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        self.console.say(f"step {step}  epoch {self.plan.epoch_at(step):.2f}  val  {told}{mark}")
        if self.is_over():
            self.console.say(
                f"step {step}  ends the run: {self.at.num_not_better} evaluations without a better {metric}"
            )

    def why_stopped(self) -> str:
        """Say who asked for the end of the run, and how it goes on."""
        reasons = sorted({reason for reason in gathered_lists(self.accelerator, [self.stop.reason]) if reason})
        return f"stopped by {', '.join(reasons)} after step {self.at.step}, which is saved; go on with --resume"

    def minutes_are_over(self) -> bool:
        """Say, alike on every process, whether the clock asks for a checkpoint."""
        every = self.options.every_minutes
        return every is not None and on_main(self.accelerator, lambda: time.monotonic() - self.saved_at >= 60 * every)

    def save(self) -> None:
        """Write the checkpoint of the step that was just done, then the pointers, then remove old ones."""
        started = time.monotonic()
        average = [] if self.average is None else [self.average.tensors()]
        parts = [self.bare.state_dict(), optimizer_tensors(self.optimizer), *average]
        tensors = [whole(part, keep=self.accelerator.is_main_process) for part in parts]
        on_main(self.accelerator, lambda: self.write_checkpoint(*tensors))
        self.saved_at = time.monotonic()
        self.stop.took(save=self.saved_at - started)

    def write_checkpoint(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], average: dict[str, Tensor] | None = None
    ) -> None:
        """Write what a resumed run needs; on the first process only."""
        at = self.at
        self.metrics.sync()
        scaler = self.accelerator.scaler
        state = {
            **at.to_state(),
            "num_averaged": None if self.average is None else self.average.num_updates,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "num_processes": self.accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
            **self.options.settings,
        }
        self.saver.save(
            step=at.step, best_step=at.best_step, model=model, optimizer=optimizer, average=average, state=state
        )
