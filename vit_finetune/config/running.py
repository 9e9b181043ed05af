"""Options of the sections `evaluation`, `checkpoint` and `run`: what is scored, what is kept, and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vit_finetune.config.kinds import AS_TEXT, OR_ADDED_METRIC, PositiveFloat, PositiveInt
from vit_finetune.recipe import Section


class EvaluationConfig(Section):
    """When the val split is scored, and what decides."""

    every_steps: PositiveInt | None = None
    """Evaluate every so many steps. Give steps, epochs or neither (once an epoch)."""
    every_epochs: PositiveFloat | None = None
    """Evaluate every so many passes over the training pictures."""
    metric: Annotated[
        Literal["auto", "accuracy", "macro_accuracy", "macro_f1", "micro_f1", "mean_average_precision", "top5", "loss"],
        OR_ADDED_METRIC,
        AS_TEXT,
    ] = "auto"
    """The figure of the val split that chooses the best checkpoint. auto: accuracy; macro_accuracy where the largest
    training class has three times the pictures of the smallest; mean_average_precision for several classes a picture
    (that one and micro_f1 are for them only, macro_accuracy and top5 for one class a picture only)."""
    corruptions: bool = False
    """At the end, score the model under blur, noise and JPEG at three strengths too, beside the clean figures."""
    merge_tokens: Annotated[int, Field(ge=0)] = 0
    """At the end, score the model with so many patches merged in each block, too (ToMe, arXiv 2210.09461), beside the
    plain figures: what `predict --merge-tokens` would give. Of a plain ViT; 0 is off. The model stays as it is."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Pictures that one process scores at once; auto: as many as in training."""

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluationConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("give evaluation.every_steps or evaluation.every_epochs, not both")
        return self


class CheckpointConfig(Section):
    """When the state of the run is saved. It is also saved at each new best and at the end."""

    every_steps: PositiveInt | None = None
    """Save every so many steps. Give steps, epochs or neither (at every evaluation)."""
    every_epochs: PositiveFloat | None = None
    """Save every so many passes over the training pictures."""
    every_minutes: PositiveFloat | None = None
    """Save, too, when so many minutes have passed since the last save."""
    keep_last: PositiveInt = 3
    """How many of the newest checkpoints are kept, besides the best."""
    asynchronous: bool = False
    """Training waits for a copy in memory only, and the files are written behind it; needs memory for that copy."""

    @model_validator(mode="after")
    def _one_interval(self) -> CheckpointConfig:
        if self.every_steps is not None and self.every_epochs is not None:
            raise ValueError("give checkpoint.every_steps or checkpoint.every_epochs, not both")
        return self


class RunConfig(Section):
    """Where the run lives and what it runs on."""

    dir: str = "runs/default"
    """Folder of the run; it must not exist yet."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random decision is a function of this and of its place in the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: the accelerator that torch finds, else the CPU."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share a network: ddp, each has all of it; fsdp (CUDA only), each keeps a part of weights,
    gradients and optimizer state, for networks that are too large otherwise. auto: ddp."""
    fsdp_cpu_offload: bool = False
    """With fsdp, keep each process's part in the CPU's memory: less of the GPU's, and much slower."""
    num_threads: PositiveInt | Literal["auto"] = "auto"
    """CPU threads per process; auto: the cores shared out among the processes of this machine."""
    deterministic: bool = False
    """On a GPU: only algorithms whose results repeat bit for bit (slower). A CPU repeats anyway."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Experiment trackers that get the figures of metrics.jsonl, through Accelerate."""
    log_every_steps: PositiveInt = 1
    """Training figures are written to metrics.jsonl every so many steps."""
    report: Literal["auto", "off"] = "auto"
    """auto: at the end report.html is written into the run's folder, one page that needs nothing else. A report that
    cannot be written is told of and fails nothing. Rungs of a budget and trials of a sweep have none of their own."""
    profile: bool = False
    """Write profile/ into the run's folder: where the time of three steps goes, on a page (summary.md) and as a trace
    of torch.profiler (trace.json, for chrome://tracing or Perfetto)."""
    check: Literal["quick", "off"] = "quick"
    """What the command `train` does with the data before it starts: quick reads every file and looks at names, headers,
    copies and classes, stops at what training would stop at and says the rest."""

    @model_validator(mode="after")
    def _offload_is_of_fsdp(self) -> RunConfig:
        if self.fsdp_cpu_offload and self.strategy != "fsdp":
            raise ValueError("run.fsdp_cpu_offload needs run.strategy fsdp")
        return self
