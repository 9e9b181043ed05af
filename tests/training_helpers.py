"""What the tests of `training/` share: a tiny network, batches in memory, a plan, and one call that runs `fit`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vit_finetune.common.seeding import derive_seed
from vit_finetune.evaluation import EvalResult, score
from vit_finetune.models import VisionTransformer, create_model, replace_head
from vit_finetune.training import FitOptions, Progress, RunConsole, TrainPlan, fit, make_optimizer, parameter_groups
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.stopping import StopRequest

NUM_CLASSES = 3
NUM_TRAIN = 20
CLASS_NAMES = ("kauz", "milan", "wren")


@dataclass(frozen=True, eq=False)
class Pictures:
    """A batch in memory."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    sample_seeds: Tensor
    positions: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def part(self, rows: slice) -> Pictures:
        """Return some of the rows."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return Pictures(**{name: None if values is None else values[rows] for name, values in parts.items()})


def tiny_vit(*, seed: int = 0, init: Any = "trunc_normal", dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """Return a two-block network for 32 x 32 pictures and three classes."""
    fields = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32} | overrides
    torch.manual_seed(seed)
    model = create_model("vit_tiny_patch16_224", **fields)
    return replace_head(model, NUM_CLASSES, init=init).to(dtype)


def pictures(step: int, count: int = 8, *, dtype: torch.dtype = torch.float32) -> Pictures:
    """Return the global batch of a step: as in a run, a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    images = torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64) + labels[:, None, None, None]
    indices = torch.arange(step * count, (step + 1) * count) % NUM_TRAIN
    seeds = torch.tensor([derive_seed(0, "noise", step, row) for row in range(count)])
    return Pictures(images.to(dtype), labels, indices, seeds, torch.arange(count))


def steps_of(
    first: int = 0, *, count: int = 8, micro: int = 8, dtype: torch.dtype = torch.float32
) -> Iterator[list[Pictures]]:
    """Yield the micro-batches of every step from `first` on, without end."""
    while True:
        whole = pictures(first, count, dtype=dtype)
        yield [whole.part(slice(start, start + micro)) for start in range(0, count, micro)]
        first += 1


def plan_of(**changes: Any) -> TrainPlan:
    """Return a plan of six steps of eight pictures that evaluates and saves every second step."""
    values: dict[str, Any] = {
        "num_train": NUM_TRAIN,
        "num_val": 7,
        "num_classes": NUM_CLASSES,
        "num_steps": 6,
        "warmup_steps": 2,
        "schedule": "cosine",
        "lr": 1e-3,
        "global_batch_size": 8,
        "per_device_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "evaluate_every": 2,
        "save_every": None,
        "num_processes": 1,
        "mixed_precision": "no",
        "seed": 0,
    }
    return TrainPlan(**(values | changes))


def options_of(**changes: Any) -> FitOptions:
    """Return what a usual recipe says besides the plan."""
    values: dict[str, Any] = {
        "max_grad_norm": 1.0,
        "metric": "accuracy",
        "keep_last": 3,
        "every_minutes": None,
        "log_every_steps": 1,
        "settings": {"data": "abc"},
        "name_sample": lambda index: f"photos/{index}.png",
    }
    return FitOptions(**(values | changes))


def adamw(model: VisionTransformer, *, name: str = "adamw", lr: float = 1e-3, layer_decay: float = 0.75) -> Any:
    """Return the optimizer of a usual recipe."""
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=layer_decay)
    return make_optimizer(groups, name=name, lr=lr, momentum=0.9, nesterov=False, betas=None, eps=None)


def scorer(count: int = 7) -> Callable[[nn.Module], EvalResult]:
    """Return what scores a model on a fixed batch."""
    batch = pictures(10_000, count)
    return lambda model: score(model, [batch], class_names=CLASS_NAMES, num_expected=count)


def figures(**metrics: float) -> EvalResult:
    """Return an evaluation that says what a test wants."""
    return EvalResult({"loss": 1.0, **metrics}, 7, [], *(torch.zeros(0).numpy(),) * 3)


@dataclass
class Run:
    """A run of `fit`: its parts, kept to be looked at."""

    run_dir: Path
    model: VisionTransformer
    accelerator: Accelerator
    wrapped: Any
    optimizer: Any
    console: RunConsole

    @classmethod
    def start(
        cls,
        run_dir: Path,
        model: VisionTransformer | None = None,
        *,
        name: str = "adamw",
        accelerator: Accelerator | None = None,
    ) -> Run:
        """Prepare a tiny run on the CPU."""
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        model = model if model is not None else tiny_vit()
        accelerator = accelerator or Accelerator(cpu=True)
        wrapped, optimizer = accelerator.prepare(model, adamw(model, name=name))
        console = RunConsole(enabled=False)
        return cls(run_dir, model, accelerator, wrapped, optimizer, console)

    def fit(
        self,
        plan: TrainPlan | None = None,
        options: FitOptions | None = None,
        *,
        batches: Iterator[Sequence[Any]] | None = None,
        evaluate: Callable[[nn.Module], EvalResult] | None = None,
        progress: Progress | None = None,
        average: WeightAverage | None = None,
        stop: StopRequest | None = None,
    ) -> Progress:
        """Train, with what the test leaves out taken from a usual run."""
        return fit(
            self.wrapped,
            self.optimizer,
            accelerator=self.accelerator,
            plan=plan or plan_of(),
            options=options or options_of(),
            batches=batches or steps_of(progress.step if progress is not None else 0),
            evaluate=evaluate,
            run_dir=self.run_dir,
            console=self.console,
            progress=progress,
            average=average,
            stop=stop,
        )

    def rows(self, split: str = "train") -> list[dict[str, Any]]:
        """Return the rows of a split in metrics.jsonl."""
        rows = map(json.loads, (self.run_dir / "metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["split"] == split]


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every tensor of a network."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
