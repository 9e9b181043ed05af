"""Whether a run starts, goes on or is done already, and putting back the state it goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder
from vit_finetune.training import checkpoint as store
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.journal import Journal
from vit_finetune.training.optim import load_optimizer_tensors
from vit_finetune.training.processes import on_main
from vit_finetune.training.progress import AVERAGE, Progress
from vit_finetune.training.sharding import load_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vit_finetune.training.console import RunConsole

CONFIG_FILE = "config.yaml"
# Keys that change how a run is carried out or shown, never what it computes but for rounding.
_HARMLESS = (
    *("checkpoint.", "data.cache", "data.num_workers", "data.on_change", "readout.cache_", "run.check", "run.dir"),
    *("run.fsdp_cpu_offload", "run.num_threads", "run.profile", "run.report", "run.strategy", "run.trackers"),
    "train.grad_checkpointing",
)


def check_run_folder(run_dir: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> bool:
    """Say whether the run in `run_dir` goes on (True) or starts afresh (False); write nothing.

    Args:
        run_dir: the run's folder.
        config: the configuration as plain values.
        resume: go on with what is there; with nothing there, start.
        overwrite: replace what is there.

    Raises:
        RequestError: both were asked for; the folder is there and neither was; it is no run folder; or the
            run there was started with another configuration.
    """
    if resume and overwrite:
        raise RequestError("--resume and --overwrite contradict each other; give one of them")
    if run_dir.exists() and not run_dir.is_dir():
        raise RequestError(f"{run_dir} is a file; give another run.dir")
    if not run_dir.is_dir() or not any(run_dir.iterdir()):
        return False
    saved = run_dir / CONFIG_FILE
    if not saved.is_file():
        raise RequestError(f"{run_dir} is not empty and no run folder (it has no {CONFIG_FILE}); give another run.dir")
    if overwrite:
        return False
    if not resume:
        raise RequestError(f"{run_dir} holds a run already; give --resume to go on, --overwrite, or another run.dir")
    differences = [line for key, line in config_differences(_started_with(run_dir), config) if not is_harmless(key)]
    if differences:
        listed = "; ".join(differences)
        raise RequestError(f"{run_dir} was started with another configuration: {listed}; resume with its own {saved}")
    return True


def _started_with(run_dir: Path) -> dict[str, Any]:
    """Return the configuration that a run was started with."""
    values: dict[str, Any] = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    return values


def is_harmless(key: str) -> bool:
    """Say whether a key changes how a run is carried out or shown, but not what it computes."""
    return key.startswith(_HARMLESS)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key whose value differs, and a line that tells both values.

    Args:
        old: a configuration as plain values.
        new: another.
        prefix: of the keys' names.
    """
    for key in sorted({*old, *new}):
        path = prefix + key
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from config_differences(before, after, path + ".")
        elif before != after:
            yield path, f"{path} was {before!r}, now {after!r}"


@contextmanager
def new_run_folder(run_dir: Path) -> Iterator[Path]:
    """Yield a temporary folder for what a run starts with; when the block ends well, it is the run's folder.

    So a run's folder holds its configuration from the first moment on, and a run that was killed then can be resumed.

    Args:
        run_dir: the run's folder; an older run there goes, as `check_run_folder` allowed.
    """
    with atomic_folder(run_dir, replace=True) as folder:
        (folder / "checkpoints").mkdir()
        yield folder


@dataclass(frozen=True)
class Found:
    """What a run goes on from.

    Attributes:
        step: of its newest whole checkpoint, or None where there is none.
        notes: a line for each damaged one that was passed over, and one for each key that differs and may.
    """

    step: int | None
    notes: tuple[str, ...]


def find_checkpoint(run_dir: Path, config: Mapping[str, Any] | None = None) -> Found:
    """Find the newest checkpoint of a run whose hashes agree.

    Args:
        run_dir: the run's folder.
        config: the configuration that it goes on with, as `check_run_folder` let it pass; None for its own.
    """
    step, notes = store.newest_whole(run_dir / "checkpoints")
    changed = [] if config is None else config_differences(_started_with(run_dir), config)
    return Found(step, (*notes, *(f"resume: {line}" for _, line in changed)))


def restore(
    run_dir: Path,
    found: Found,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    console: RunConsole,
    metric: str,
    keep_last: int,
    keep_threads: bool,
    average: WeightAverage | None = None,
) -> Progress:
    """Put a checkpoint back and cut the journals to its step.

    Args:
        run_dir: the run's folder.
        found: of `find_checkpoint`.
        model: the bare network, sharded or not.
        optimizer: prepared, over the parameters that train after the checkpoint's step.
        accelerator: of the run.
        console: told what was used and what was passed over.
        metric: of the val split, for the best checkpoint.
        keep_last: newest checkpoints to keep.
        keep_threads: take the thread count over from the checkpoint.
        average: of the weights, or None.

    Returns:
        Where the run goes on; step 0 where there is no whole checkpoint yet.
    """
    step = found.step
    console.say(*found.notes)
    if accelerator.is_main_process:
        store.remove_leftovers(run_dir)
    journals = [
        Journal(run_dir / name, enabled=accelerator.is_main_process) for name in ("metrics.jsonl", "timing.jsonl")
    ]
    if step is None:
        for journal in journals:
            journal.cut(0)
        console.say("resume: no whole checkpoint yet, starting from step 0")
        return Progress()
    loaded = store.load_checkpoint(run_dir / "checkpoints", step, verify=False)  # every byte has just been read
    state = loaded.state
    for journal in journals:
        journal.cut(step)
    load_whole(model, loaded.model)
    load_optimizer_tensors(optimizer, loaded.optimizer)
    if average is not None and loaded.average is not None:
        average.load(loaded.average, state["num_averaged"])
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    _restore_threads(state, accelerator, console, keep_threads=keep_threads)
    console.say(f"resume: going on after step {step}")
    root = run_dir / "checkpoints"
    at = _with_a_whole_best(root, Progress.of_state(step, state), console, journals[0], metric)
    on_main(accelerator, lambda: store.settle(root, step=step, best_step=at.best_step, keep_last=keep_last))
    return at


def _with_a_whole_best(root: Path, at: Progress, console: RunConsole, metrics: Journal, metric: str) -> Progress:
    """Return where the run stands; if the best checkpoint is lost, the one that it goes on from takes its place."""
    if at.best_step in (None, at.step) or (problem := store.damage_of_step(root, at.best_step)) is None:
        return at
    lost = f"{store.folder_name(at.best_step)}, the best so far, can't be used ({problem})"
    at = replace(at, best_step=None, best_value=None, best_is_average=False)
    scored = [row for row in metrics.rows() if row["step"] == at.step and row["split"] == "val"]
    if not scored:
        console.say(f"{lost}; the best of the evaluations to come takes its place")
        return at
    console.say(f"{lost}; step {at.step} takes its place until a better one comes")
    return at.compared(metric, scored[0][metric], scored[0].get(AVERAGE + metric), counts=False)


def _restore_threads(
    state: Mapping[str, Any], accelerator: Accelerator, console: RunConsole, *, keep_threads: bool
) -> None:
    """Results repeat bit for bit at the same number of processes and threads only."""
    if state["num_processes"] != accelerator.num_processes:
        before, now = state["num_processes"], accelerator.num_processes
        console.say(f"resume: {before} processes before, {now} now: later steps agree to rounding, not bit for bit")
    elif keep_threads:
        torch.set_num_threads(state["num_threads"])
    elif state["num_threads"] != torch.get_num_threads():
        before, now = state["num_threads"], torch.get_num_threads()
        console.say(f"resume: {before} threads before, {now} now: later steps agree to rounding, not bit for bit")
