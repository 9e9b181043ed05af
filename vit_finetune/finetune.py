"""Fine-tuning from a configuration to a finished model: the story of a run, top to bottom.

Every step is a public call of a room below; somebody who wants another order writes them in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_finetune.assembly import Feeder, build_model, flat, make_plan, preprocess_of, start_screen
from vit_finetune.common.files import write_json, write_text
from vit_finetune.common.machine import environment
from vit_finetune.common.seeding import derive_seed
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.manifest import manifest_hash, write_manifest
from vit_finetune.data.sources import FROM_PYTHON
from vit_finetune.evaluation import write_evaluation
from vit_finetune.export import export_model_folder
from vit_finetune.models import Backbone
from vit_finetune.predict import open_splits
from vit_finetune.training import (
    FitOptions,
    RunConsole,
    check_run_folder,
    fit,
    make_optimizer,
    new_run_folder,
    on_main,
    parameter_groups,
    restore,
    set_threads,
    start_accelerator,
)
from vit_finetune.training.checkpoint import load_checkpoint
from vit_finetune.tuning import apply_tuning
from vit_finetune.weights import own_memory


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        run_dir: its folder; `run_dir / "model"` opens without us.
        model: the best checkpoint's network, on the CPU, in eval mode.
        metrics: figures of the test split if there is one, else of val: `loss`, `accuracy`, ... as fractions.
        best_step: the step the model is of.
        num_steps: optimizer steps of the run.
    """

    run_dir: Path
    model: Backbone
    metrics: dict[str, float]
    best_step: int
    num_steps: int


def finetune(  # noqa: PLR0915 - the one long function: a story is told in one piece
    config: Config | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data: Splits | None = None,
) -> RunResult:
    """Fine-tune a network as configured and return the best one.

    Args:
        config: a Config, a mapping of its sections, a YAML file or the name of a shipped recipe.
        resume: go on with the run in `run.dir`; starts it where there is none, returns it where it is done.
        overwrite: replace the run in `run.dir`.
        data: the pictures, already opened (see `splits_from`, `k_folds`); None opens what `config.data` names. In a
            recipe or mapping `data.source` then becomes `python`; a Config keeps what it says.

    Returns:
        The finished run.

    Raises:
        RequestError: the configuration, the data or the weights are not what they must be; nothing was written.
        WorkError: a loss or gradient is not finite, or the disk refused; what was written before is whole.
    """
    keeps_data = data is None or isinstance(config, Config)
    config = Config.load(config, overrides=[] if keeps_data else [f"data.source={FROM_PYTHON}"])
    run_dir = Path(config.run.dir)

    # Processes, device, precision. Nothing is written before everything below has been found to fit.
    accelerator = start_accelerator(
        device=config.run.device,
        mixed_precision=config.train.mixed_precision,
        trackers=config.run.trackers,
        run_dir=run_dir,
        deterministic=config.run.deterministic,
    )
    threads = set_threads(config.run.num_threads)
    console = RunConsole(enabled=accelerator.is_main_process)
    values = config.model_dump(mode="json")
    resuming = on_main(accelerator, lambda: check_run_folder(run_dir, values, resume=resume, overwrite=overwrite))

    # Pictures, with one class map over all splits.
    splits = data or open_splits(config.data, seed=config.run.seed)
    data_hash = on_main(accelerator, lambda: _prepare_manifest(splits, run_dir, resuming=resuming))

    # The network: pretrained weights, a new head, what trains.
    torch.manual_seed(derive_seed(config.run.seed, "init"))
    model, report = build_model(config, splits)
    preprocess = preprocess_of(config, model, report)
    tuned = apply_tuning(model, config.tuning.mode, num_blocks=config.tuning.num_blocks)
    own_memory(model)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    if config.train.compile:
        model.compile()

    # Every derived number, told and saved before the first step.
    plan = make_plan(config, splits, accelerator)
    facts = {"plan": plan.to_mapping(), "environment": environment(), "load_report": report.to_mapping()}
    on_main(accelerator, lambda: _open(run_dir, config, facts, resuming=resuming))
    console.log_to(run_dir / "run.log")
    place = f"{accelerator.device}, {threads} threads"
    console.say(*start_screen(config, model=model, report=report, tuned=tuned, splits=splits, plan=plan, place=place))
    accelerator.init_trackers("vit_finetune", config=flat(values))

    # The optimizer, wrapped with the network for these processes.
    groups = parameter_groups(
        model, weight_decay=config.optimizer.weight_decay, layer_decay=config.optimizer.layer_decay
    )
    model.to(accelerator.device)
    optimizer = make_optimizer(
        groups,
        name=config.optimizer.name,
        lr=config.optimizer.lr,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    settings = {"data": data_hash}
    progress = None
    if resuming:
        progress = restore(
            run_dir,
            model=model,
            optimizer=optimizer,
            accelerator=accelerator,
            console=console,
            settings=settings,
            keep_threads=config.run.num_threads == "auto",
        )

    # Training, with evaluation and checkpoints on the way.
    feeder = Feeder(config, splits, preprocess, plan, accelerator)
    done = fit(
        wrapped,
        optimizer,
        accelerator=accelerator,
        plan=plan,
        options=FitOptions(
            label_smoothing=config.train.label_smoothing,
            max_grad_norm=config.train.max_grad_norm,
            metric=config.evaluation.metric,
            keep_last=config.checkpoint.keep_last,
            every_minutes=config.checkpoint.every_minutes,
            log_every_steps=config.run.log_every_steps,
            settings=settings,
            name_sample=splits.train.name,
        ),
        batches=feeder.train(progress.step if progress is not None else 0),
        evaluate=feeder.val_scorer(model),
        run_dir=run_dir,
        console=console,
        progress=progress,
    )

    # The best checkpoint, scored on the test split (once) or on val, written so that others open it.
    best_step = done.best_step if done.best_step is not None else done.step
    model.load_state_dict(load_checkpoint(run_dir / "checkpoints", best_step).model)
    final_split, pictures = ("test", splits.test) if splits.test is not None else ("val", splits.val)
    result = None if pictures is None else feeder.score(model, pictures, keep_predictions=True)
    model = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).to("cpu").eval()
    finished = RunResult(run_dir, model, {} if result is None else result.metrics, best_step, plan.num_steps)

    def write() -> None:
        names = splits.class_names
        export_model_folder(model, run_dir / "model", preprocess=preprocess, class_names=names, overwrite=True)
        summary: dict[str, Any] = {"best_step": best_step, "num_steps": plan.num_steps}
        if result is not None and pictures is not None:
            files = [pictures.name(index) for index in range(len(pictures))]
            write_evaluation(run_dir / "predictions.parquet", result, names=files, split=final_split, class_names=names)
            summary = {"split": final_split, **result.metrics, "num_samples": result.num_samples, **summary}
            summary["per_class"] = result.per_class
        write_json(run_dir / "metrics.json", summary)

    on_main(accelerator, write)
    accelerator.end_training()
    console.say(*_end_screen(finished, final_split))
    return finished


def _pending_manifest(run_dir: Path) -> Path:
    """Where the manifest waits until the run's folder may be made: nothing is left where a picture is bad."""
    return run_dir.with_name(f".{run_dir.name}.manifest.parquet")


def _prepare_manifest(splits: Splits, run_dir: Path, *, resuming: bool) -> str:
    """Read and check every picture once and return the digest of them all."""
    return manifest_hash(splits) if resuming else write_manifest(splits, _pending_manifest(run_dir))


def _open(run_dir: Path, config: Config, facts: Mapping[str, Any], *, resuming: bool) -> None:
    """Make the run's folder and write into it what is known before the first step."""
    if not resuming:
        with new_run_folder(run_dir) as folder:
            write_text(folder / "config.yaml", config.to_yaml())
            _pending_manifest(run_dir).replace(folder / "manifest.parquet")
    for name, values in facts.items():
        write_json(run_dir / f"{name}.json", values)


def _end_screen(result: RunResult, split: str) -> list[str]:
    """Return what came out and what to type next."""
    figures = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    return [
        f"done     step {result.best_step} is the best; {split}: {figures}" if figures else "done",
        f"model    {result.run_dir / 'model'}   (timm and transformers open this folder)",
        f"next     vit-finetune predict {result.run_dir} PICTURE_OR_FOLDER...",
    ]
