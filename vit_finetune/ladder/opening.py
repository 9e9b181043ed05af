"""The start of a run under a budget: its folder, its pictures' digest, and the decisions that stand already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vit_finetune.common.durations import seconds_of
from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json, write_text
from vit_finetune.common.layout import MANIFEST
from vit_finetune.common.machine import environment
from vit_finetune.config import Config, TuningConfig
from vit_finetune.data import Splits
from vit_finetune.data.manifest import manifest_hash, write_manifest
from vit_finetune.ladder.decisions import PLAN_FILE, Log, check_replay, read_log
from vit_finetune.training import check_run_folder, has_bf16_units, on_main, resolve_device
from vit_finetune.training.processes import resolve_precision

if TYPE_CHECKING:
    from accelerate import Accelerator


def checked_budget(config: Config) -> int:
    """Return the budget in seconds.

    Raises:
        RequestError: the configuration leaves the ladder nothing to choose, or nothing to choose by.
    """
    if config.train.budget is None:
        raise AssertionError("the ladder is for runs under a budget")
    if config.tuning != TuningConfig():
        raise RequestError(
            f"train.budget chooses what trains, rung by rung; drop the section tuning (mode {config.tuning.mode}), or "
            "give train.epochs or train.steps"
        )
    if config.data.val_split is None:
        raise RequestError(
            "train.budget chooses by the val split, and data.val_split is null; leave that out, and a share of train "
            "is held out"
        )
    if config.train.wise_ft:
        raise RequestError("train.budget blends with what fine-tuning began with on its last rung; drop train.wise_ft")
    if config.train.early_stopping_patience:
        raise RequestError(
            "train.budget scores val at the end of each rung only, where patience has nothing to wait for; drop "
            "train.early_stopping_patience, or give train.epochs or train.steps"
        )
    return seconds_of(config.train.budget)


def open_run(
    config: Config,
    splits: Splits,
    accelerator: Accelerator,
    *,
    num_threads: int,
    resume: bool,
    overwrite: bool,
    plan: str | Path | None,
    rungs: Sequence[str],
) -> Log:
    """Make the run's folder, or open it, and return the decisions that stand.

    Args:
        config: of the run.
        splits: its pictures.
        accelerator: of the run.
        num_threads: CPU threads per process.
        resume: go on with the run in `run.dir`; starts it where there is none.
        overwrite: replace the run in `run.dir`.
        plan: plan.json of the run to replay, if one is.
        rungs: names of what will be tried.

    Raises:
        RequestError: the folder, the data or the plan are not what they must be; nothing was written.
    """
    run_dir, values = Path(config.run.dir), config.model_dump(mode="json")

    def work() -> Log:
        resuming = check_run_folder(run_dir, values, resume=resume, overwrite=overwrite)
        if resuming:
            log = read_log(run_dir)
            if manifest_hash(splits) != log.data:
                raise RequestError(f"{run_dir} was started with other data; put that back, or start another run.dir")
            return log
        replayed = (
            None if plan is None else _whole(Path(plan), rungs)
        )  # read first: it may be of the run that is replaced
        with atomic_folder(run_dir, replace=True) as folder:
            digest = write_manifest(splits, folder / MANIFEST)
            log = Log(
                budget=config.train.budget or "",
                config=values,
                data=digest,
                num_threads=num_threads,
                mixed_precision=str(accelerator.mixed_precision),
                num_processes=accelerator.num_processes,
            )
            if replayed is not None:
                check_replay(replayed, log)
                log = replace(log, num_threads=replayed.num_threads, decisions=replayed.decisions)
            write_text(folder / "config.yaml", config.to_yaml())
            write_json(folder / "environment.json", environment())
            log.write(folder)
        return log

    return on_main(accelerator, work)


def settled_precision(config: Config, *, resume: bool, plan: str | Path | None) -> str:
    """Return no, bf16 or fp16, before Accelerate is told: a process may not change it later.

    A plan that is written down may know this processor, which a recipe's auto may not; one that stands is kept to.

    Args:
        config: of the run.
        resume: go on with the run in `run.dir`, if there is one.
        plan: plan.json of the run to replay, if one is.
    """
    standing = Path(config.run.dir) if plan is None else Path(plan)
    if plan is not None or (resume and (standing / PLAN_FILE).is_file()):
        return read_log(standing).mixed_precision
    kind = resolve_device(config.run.device)
    if config.train.mixed_precision == "auto" and has_bf16_units(kind):
        return "bf16"
    return resolve_precision(config.train.mixed_precision, kind)


def _whole(plan: Path, rungs: Sequence[str]) -> Log:
    """Read a plan, and refuse one that leaves decisions to the clock."""
    log = read_log(plan)
    decided = [decision.rung for decision in log.decisions]
    if decided != list(rungs):
        raise RequestError(
            f"{plan} decides about {', '.join(decided) or 'nothing'}, and the rungs are {', '.join(rungs)}; it was cut "
            "off or is of another version; finish its run with --resume first"
        )
    return log
