"""How a model trains: the plan, the optimizer, the one loop, its checkpoints and its console."""

from vit_finetune.training.console import RunConsole
from vit_finetune.training.loop import fit
from vit_finetune.training.optim import (
    group_table,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    parameter_groups,
)
from vit_finetune.training.plan import TrainPlan, check_shares, micro_batch, steps_in
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
from vit_finetune.training.resume import check_run_folder, find_checkpoint, new_run_folder, restore
from vit_finetune.training.stages import Stage, plan_stages

__all__ = [
    "FitOptions",
    "Progress",
    "RunConsole",
    "Stage",
    "TrainPlan",
    "check_run_folder",
    "check_shares",
    "end_run",
    "find_checkpoint",
    "fit",
    "group_table",
    "has_bf16_units",
    "leave_processes",
    "load_optimizer_tensors",
    "make_optimizer",
    "micro_batch",
    "new_run_folder",
    "on_main",
    "optimizer_tensors",
    "parameter_groups",
    "plan_stages",
    "resolve_device",
    "restore",
    "set_threads",
    "start_accelerator",
    "steps_in",
]
