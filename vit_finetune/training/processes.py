"""The processes of a run: starting Accelerate so that it does what the recipe says, and speaking as one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from vit_finetune.common.errors import RequestError, VitFinetuneError, WorkError
from vit_finetune.common.machine import num_cores

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

T = TypeVar("T")


def start_accelerator(
    *, device: str, mixed_precision: str, trackers: Sequence[str], run_dir: Path, deterministic: bool
) -> Accelerator:
    """Return an Accelerator that obeys the recipe, or say what contradicts it.

    Args:
        device: auto, cpu, cuda or mps.
        mixed_precision: auto, no, bf16 or fp16; see `resolve_precision`.
        trackers: names that Accelerate knows.
        run_dir: where trackers that write files put them.
        deterministic: allow only algorithms whose results repeat.

    Raises:
        RequestError: the device or precision is not there, a tracker's package is missing, or the environment
            of a launcher says something else than the recipe.
    """
    kind = resolve_device(device)
    precision = resolve_precision(mixed_precision, kind)
    _refuse_contradictions(mixed_precision, precision)
    _refuse_missing_trackers(trackers)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    if "WORLD_SIZE" not in os.environ:
        # Accelerate keeps device and precision of a process's first run for all later ones; in a notebook those differ.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        mixed_precision=precision,
        # Without cpu=True, torchrun on a machine without an accelerator gives N separate runs of world size 1.
        cpu=kind == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=list(trackers) or None,
        project_dir=str(run_dir),
        step_scheduler_with_optimizer=False,
    )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted > 1 and accelerator.num_processes == 1:
        raise RequestError(
            f"the launcher started {wanted} processes, but Accelerate sees one; start with "
            "`vit-finetune train ... --num-processes N` or torchrun"
        )
    return accelerator


def end_run(accelerator: Accelerator) -> None:
    """Let a run's trackers finish; the processes stay together, since another run may follow in them.

    Accelerate's own `end_training` takes the group of processes apart, and a second run then finds none.
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def check_shared(accelerator: Accelerator, file: Path, *, patience: float = 20.0) -> None:
    """Refuse processes that do not see the run's folder: at the end each reads the best checkpoint from it.

    Args:
        accelerator: of the run.
        file: written by the first process just now.
        patience: seconds that a network's file system may take to show it.

    Raises:
        RequestError: a process does not see it, raised on all.
    """
    end = time.monotonic() + patience
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    blind = gathered_lists(accelerator, [] if file.is_file() else [accelerator.process_index])
    if blind:
        raise RequestError(
            f"process {', '.join(map(str, blind))} of this run cannot see {file}, which process 0 wrote; give a "
            "run.dir that all machines share",
            is_of_all=True,
        )


def leave_processes() -> None:
    """Take the group of processes apart, where there is one: nothing follows."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def resolve_device(device: str) -> str:
    """Return cpu, cuda or mps for a recipe's `run.device`.

    Raises:
        RequestError: the device that was asked for is not there.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if found[name])
    if not found[device]:
        there = ", ".join(name for name, is_there in found.items() if is_there)
        raise RequestError(f"run.device {device!r} is not on this machine; there is {there}")
    return device


def resolve_precision(mixed_precision: str, device_kind: str) -> str:
    """Return no, bf16 or fp16 for a recipe's `train.mixed_precision`.

    auto is bf16 where a CUDA device has it in hardware, fp16 on other CUDA devices and "no" elsewhere: a CPU
    without matrix units for bf16 multiplies it several times slower than float32.

    Raises:
        RequestError: fp16 without CUDA.
    """
    if mixed_precision == "auto":
        if device_kind != "cuda":
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if mixed_precision == "fp16" and device_kind != "cuda":
        raise RequestError(
            f"train.mixed_precision fp16 needs a CUDA device, this run is on {device_kind}; use bf16 or no"
        )
    return mixed_precision


def has_bf16_units(device_kind: str) -> bool:
    """Say whether a CPU multiplies bf16 matrices in hardware (AMX): training is then about twice as fast as in fp32.

    Where it does not, bf16 is several times slower, and a CUDA device's precision is `resolve_precision`'s.
    """
    return device_kind == "cpu" and torch.cpu._is_amx_tile_supported()


def _refuse_contradictions(configured: str, resolved: str) -> None:
    """Refuse a launcher's environment that says something else than the recipe."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if told is not None and told not in ("no", resolved) and configured != "auto":
        raise RequestError(
            f"ACCELERATE_MIXED_PRECISION is {told}, the recipe's train.mixed_precision is {configured}; make them agree"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise RequestError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {steps}; accumulation follows from train.global_batch_size and "
            "train.per_device_batch_size, so leave it at 1"
        )
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise RequestError(
                f"ACCELERATE_USE_{name} is true, but how processes share a network is the recipe's run.strategy (auto, "
                "ddp or fsdp); leave it out of Accelerate's configuration"
            )


def _refuse_missing_trackers(trackers: Sequence[str]) -> None:
    from importlib.util import find_spec

    missing = [name for name in trackers if find_spec(name) is None]
    if missing:
        raise RequestError(
            f"run.trackers names {', '.join(missing)}, not installed here; pip install {' '.join(missing)}"
        )


def set_threads(num_threads: int | str) -> int:
    """Set and return the CPU threads of this process: the number, or for "auto" its share of the machine's cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, num_cores() // local) if isinstance(num_threads, str) else num_threads
    torch.set_num_threads(threads)
    return threads


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on the first process alone and return its result on all; its error is raised on all.

    Args:
        accelerator: of the run.
        work: what only one process may do; its result must pickle.

    Raises:
        VitFinetuneError: what `work` raised, of the same kind on every process, so that none waits for another.
    """
    told: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = work()
        except VitFinetuneError as error:
            told[1] = error
        except OSError as error:
            told[1] = WorkError(str(error))
        if isinstance(told[1], VitFinetuneError):
            told[1].is_of_all = True
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(told)
    if isinstance(told[1], VitFinetuneError):
        raise told[1]
    return told[0]  # type: ignore[return-value]


def gathered_lists(accelerator: Accelerator, items: list[T]) -> list[T]:
    """Return the items of all processes, joined in the order of the processes."""
    if accelerator.num_processes == 1:
        return items
    from accelerate.utils import gather_object

    joined: list[T] = gather_object(items)
    return joined
