"""A readout run from a configuration to a finished model, top to bottom.

The same pictures, weights and settings give the same run; features that an earlier run kept are not computed again.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import torch

from vit_finetune.assembly import build_model, preprocess_of, settle_metric
from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json, write_text
from vit_finetune.common.layout import MANIFEST
from vit_finetune.common.machine import environment
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.common.seeding import derive_seed
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.corruptions import corruption_lines
from vit_finetune.data.manifest import manifest_hash, write_manifest
from vit_finetune.evaluation import temperature_of
from vit_finetune.export import export_onnx, export_readout
from vit_finetune.models import Backbone
from vit_finetune.pictures import open_splits
from vit_finetune.predict import evaluate_corrupted
from vit_finetune.readout_run.outcome import (
    METRICS_FILE,
    Clock,
    ReadoutResult,
    calibration_of,
    end_screen,
    finished_run,
    in_words,
    score_readout,
    write_outcome,
)
from vit_finetune.readout_run.planning import ReadoutPlan
from vit_finetune.readout_run.tables import feature_tables
from vit_finetune.report import report_at_end
from vit_finetune.training import RunConsole, check_run_folder, end_run, on_main, set_threads, start_accelerator
from vit_finetune.training.energy import EnergyMeter
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.readout import search_readout
from vit_finetune.training.trials import Trial, best_mean, best_of
from vit_finetune.weights import from_pretrained

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_readout(
    config: Config, *, resume: bool = False, overwrite: bool = False, data: Splits | None = None
) -> ReadoutResult:
    """Choose and fit a readout of frozen features as configured.

    Args:
        config: of the run; `tuning.mode` is readout.
        resume: return the run in `run.dir` where it is done; else start it again, from the kept features.
        overwrite: replace the run in `run.dir`.
        data: the pictures; None opens those of the configuration.

    Returns:
        The finished run.

    Raises:
        RequestError: the configuration, the data or the weights are not what they must be; nothing was written.
        WorkError: the disk refused; what was written before is whole.
    """
    run_dir, clock = Path(config.run.dir), Clock()
    accelerator, console = _processes(config)
    clock.meter = EnergyMeter(accelerator.device)
    values = config.model_dump(mode="json")
    resuming = on_main(accelerator, lambda: check_run_folder(run_dir, values, resume=resume, overwrite=overwrite))
    splits = data or open_splits(config.data, seed=config.run.seed)
    if resuming:
        on_main(accelerator, lambda: _check_same_data(run_dir, splits))
        if (run_dir / METRICS_FILE).is_file():
            return finished_run(run_dir)

    # The network as it came; its features, each of which is kept.
    torch.manual_seed(derive_seed(config.run.seed, "init"))
    model, report = build_model(config, splits)
    preprocess = preprocess_of(config, model, report)
    plan = ReadoutPlan.of(config, model, splits, accelerator)
    if not resuming:
        facts = {"plan": plan.to_mapping(), "environment": environment(), "load_report": report.to_mapping()}
        on_main(accelerator, lambda: _open(run_dir, config, splits, facts))
    console.log_to(run_dir / "run.log")
    console.say(*(f"weights  {line}" for line in report.lines()), *(f"data     {note}" for note in splits.notes))
    clock.lap("start")
    tables = feature_tables(
        config,
        model=model.to(accelerator.device).eval(),
        preprocess=preprocess,
        splits=splits,
        plan=plan,
        accelerator=accelerator,
        console=console,
    )
    console.say(f"features {clock.lap('features'):.1f} s")

    # The readout that train prefers, fitted on all of train, and all of it written by the first process.
    settled, about_metric = settle_metric(config, splits)
    console.say(*about_metric)
    work = partial(_choose_and_write, settled, model, preprocess, splits, plan=plan, tables=tables)
    note = on_main(accelerator, partial(work, console=console, clock=clock))
    finished = finished_run(run_dir)
    about_report = on_main(accelerator, lambda: report_at_end(config, splits))
    end_run(accelerator)
    console.say(*about_report, *end_screen(finished, note))
    return finished


def _processes(config: Config) -> tuple[Accelerator, RunConsole]:
    """Return the processes of the run, as the recipe wants them, and their voice."""
    accelerator = start_accelerator(
        device=config.run.device,
        mixed_precision=config.train.mixed_precision,
        trackers=(),
        run_dir=Path(config.run.dir),
        deterministic=config.run.deterministic,
    )
    set_threads(config.run.num_threads)
    return accelerator, RunConsole(enabled=accelerator.is_main_process)


def _choose_and_write(
    config: Config,
    model: Backbone,
    preprocess: PreprocessSpec,
    splits: Splits,
    *,
    plan: ReadoutPlan,
    tables: dict[str, FeatureTable],
    console: RunConsole,
    clock: Clock,
) -> str:
    """Choose and fit a readout, look at val and test once it stands, and write what others open; say who does."""
    run_dir = Path(config.run.dir)
    trials = _search(tables["train"], plan, console)
    best = best_of(trials)
    clock.lap("search")
    readout = best.fit()
    clock.lap("fit")
    results = {name: score_readout(tables[name], readout, splits.class_names) for name in tables if name != "train"}
    calibration = calibration_of(results)
    exported = export_readout(
        model.to("cpu"),
        readout,
        plan.layout,
        run_dir / "model",
        preprocess=preprocess,
        class_names=splits.class_names,
        temperature=temperature_of(calibration),
        overwrite=True,
    )
    if config.readout.onnx:
        whole, _ = from_pretrained(run_dir / "model")
        shutil.rmtree(run_dir / "onnx", ignore_errors=True)
        export_onnx(whole.eval(), run_dir / "onnx", input_size=preprocess.input_size)
    corrupted = None
    if config.evaluation.corruptions and results:
        corrupted = evaluate_corrupted(run_dir / "model", splits, seed=config.run.seed)
        console.say(*(f"corrupt  {line}" for line in corruption_lines(corrupted, config.evaluation.metric)))
    clock.lap("score and export")
    write_outcome(
        run_dir,
        splits=splits,
        trials=trials,
        best=best,
        results=results,
        corrupted=corrupted,
        calibration=calibration,
        kind=exported.kind,
        clock=clock,
    )
    return exported.note


def _check_same_data(run_dir: Path, splits: Splits) -> None:
    """Refuse to go on with other pictures than the run began with."""
    metadata = pq.read_schema(run_dir / MANIFEST).metadata or {}
    if metadata.get(b"manifest_hash", b"").decode() != manifest_hash(splits):
        raise RequestError(f"{run_dir} was started with another data set; use --overwrite or another run.dir")


def _open(run_dir: Path, config: Config, splits: Splits, facts: dict[str, Any]) -> None:
    """Make the run's folder with what is known before the first forward pass; every picture is read and checked."""
    with atomic_folder(run_dir, replace=True) as folder:
        write_manifest(splits, folder / MANIFEST)
        write_text(folder / "config.yaml", config.to_yaml())
        for name, values in facts.items():
            write_json(folder / f"{name}.json", values)


def _search(table: FeatureTable, plan: ReadoutPlan, console: RunConsole) -> list[Trial]:
    """Score every candidate on held-out folds of train, and the mean of the linear ones that see different things."""
    trials: list[Trial] = []
    for name in plan.names:
        found = search_readout(name, table, plan.folds, recipe=plan.recipe, num_heads=plan.num_heads)
        best, seconds = best_of(found), sum(trial.seconds for trial in found)
        console.say(f"readout  {name}: {best.accuracy:.4f} held out ({in_words(best.settings)}), {seconds:.1f} s")
        trials += found
    mean = best_mean(trials)
    if mean is None:
        return trials
    console.say(f"readout  mean: {mean.accuracy:.4f} held out ({in_words(mean.settings)})")
    return [*trials, mean]
