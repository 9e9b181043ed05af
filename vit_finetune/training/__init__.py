"""How a model trains: the plan, the optimizer, the one loop, its checkpoints and its console."""

from vit_finetune.training.console import RunConsole
from vit_finetune.training.loop import fit
from vit_finetune.training.optim import make_optimizer, parameter_groups
from vit_finetune.training.plan import TrainPlan, micro_batch, steps_in
from vit_finetune.training.processes import (
    end_run,
    has_bf16_units,
    leave_processes,
    on_main,
    resolve_device,
    set_threads,
    start_accelerator,
)
from vit_finetune.training.progress import FitOptions, Progress
from vit_finetune.training.resume import check_run_folder, new_run_folder, restore

__all__ = [
    "FitOptions",
    "Progress",
    "RunConsole",
    "TrainPlan",
    "check_run_folder",
    "end_run",
    "fit",
    "has_bf16_units",
    "leave_processes",
    "make_optimizer",
    "micro_batch",
    "new_run_folder",
    "on_main",
    "parameter_groups",
    "resolve_device",
    "restore",
    "set_threads",
    "start_accelerator",
    "steps_in",
]
