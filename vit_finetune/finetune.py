"""Fine-tuning from a configuration to a finished model: the story of a run, top to bottom.

Every step is a public call of a room below; somebody who wants another order writes them in another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vit_finetune.assembly import (
    FrozenWork,
    add_adapters,
    beside_lines,
    blend_with_start,
    build_model,
    end_screen,
    flat,
    make_objective,
    make_plan,
    open_feeder,
    open_run_folder,
    prepare_manifest,
    preprocess_of,
    settle_metric,
    settle_micro_batch,
    start_screen,
)
from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_json
from vit_finetune.common.machine import environment
from vit_finetune.common.seeding import derive_seed
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.sources import FROM_PYTHON
from vit_finetune.evaluation import note_opening, opening_lines, temperature_of, write_evaluation
from vit_finetune.export import export_model_folder
from vit_finetune.ladder import climb
from vit_finetune.models import Backbone
from vit_finetune.pictures import open_splits
from vit_finetune.readout_run import run_readout
from vit_finetune.report import report_at_end
from vit_finetune.staging import Staging
from vit_finetune.training import (
    FitOptions,
    Progress,
    RunConsole,
    check_run_folder,
    end_run,
    find_checkpoint,
    fit,
    on_main,
    restore,
    set_threads,
    start_accelerator,
)
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.checkpoint import load_start, load_weights, save_start
from vit_finetune.training.processes import check_shared
from vit_finetune.training.profiling import profiled
from vit_finetune.training.sharding import check_strategy
from vit_finetune.training.stopping import StopRequest
from vit_finetune.tuning import merge_lora, require_peft, save_adapter


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
    replay: str | Path | None = None,
    data: Splits | None = None,
    time_limit: float | None = None,
) -> RunResult:
    """Fine-tune a network as configured and return the best one.

    Args:
        config: a Config, a mapping of its sections, a YAML file or the name of a shipped recipe.
        resume: go on with the run in `run.dir`; starts it where there is none, returns it where it is done.
        overwrite: replace the run in `run.dir`.
        replay: plan.json of a run under `train.budget`, whose decisions are taken over, so that its result repeats.
        data: the pictures, already opened (see `splits_from`, `k_folds`); None opens what `config.data` names. In a
            recipe or mapping `data.source` then becomes `python`; a Config keeps what it says.
        time_limit: seconds from now on until which the run must be saved; it stops in time, for another call to resume.

    Returns:
        The finished run.

    Raises:
        RequestError: the configuration, the data or the weights are not what they must be; nothing was written.
        WorkError: a loss or gradient is not finite, or the disk refused; what was written before is whole.
        RunStopped: SIGTERM, SIGUSR1 or Ctrl-C, or `time_limit`, ended it early; `resume` goes on.
    """
    stop = StopRequest(time_limit)
    keeps_data = data is None or isinstance(config, Config)
    config = Config.load(config, overrides=[] if keeps_data else [f"data.source={FROM_PYTHON}"])
    run_dir = Path(config.run.dir)
    if time_limit is not None and (config.train.budget is not None or config.tuning.mode == "readout"):
        raise RequestError("a time limit stops training between steps; a budget or a readout run has none of its own")
    if config.train.budget is not None:
        climbed = climb(config, train=finetune, resume=resume, overwrite=overwrite, replay=replay, data=data)
        return RunResult(run_dir, climbed.model, climbed.metrics, climbed.best_step, climbed.num_steps)
    if replay is not None:
        raise RequestError("a plan replays a run under train.budget; this one trains for steps or epochs, which repeat")
    if config.tuning.mode == "readout":
        fitted = run_readout(config, resume=resume, overwrite=overwrite, data=data)
        return RunResult(run_dir, fitted.model, fitted.metrics, best_step=0, num_steps=0)
    if config.tuning.lora is not None:
        require_peft()

    # Processes, device, precision. Nothing is written before everything below has been found to fit.
    accelerator = start_accelerator(
        device=config.run.device,
        mixed_precision=config.train.mixed_precision,
        trackers=config.run.trackers,
        run_dir=run_dir,
        deterministic=config.run.deterministic,
    )
    check_strategy(config.run.strategy, accelerator)
    threads = set_threads(config.run.num_threads)
    console = RunConsole(enabled=accelerator.is_main_process)
    values = config.model_dump(mode="json")
    resuming = on_main(accelerator, lambda: check_run_folder(run_dir, values, resume=resume, overwrite=overwrite))

    # Pictures, with one class map over all splits.
    splits = data or open_splits(config.data, seed=config.run.seed)
    settled, about_metric = settle_metric(config, splits)
    data_hash, about_data = on_main(accelerator, lambda: prepare_manifest(splits, config, resuming=resuming))

    # The network: pretrained weights, a new head, adapters if they train.
    torch.manual_seed(derive_seed(config.run.seed, "init"))
    model, report = build_model(config, splits)
    preprocess = preprocess_of(config, model, report)
    start = model.state_dict() if config.train.wise_ft else None
    add_adapters(config, model)
    model.set_grad_checkpointing(config.train.grad_checkpointing)
    if config.train.compile:
        model.compile()

    # Every derived number; what trains first, with its optimizer, wrapped for these processes.
    plan = make_plan(settled, splits, accelerator, network=model.config)
    objective = make_objective(config, splits, plan)
    average = None if config.train.ema_decay is None else WeightAverage(model, config.train.ema_decay)
    found = find_checkpoint(run_dir, values) if resuming else None
    begin = plan.stage_at((found and found.step) or 0)
    staging = Staging(config, model, plan, accelerator)
    staging.choose(plan.stages[-1])  # the last stage trains most, so it needs most memory
    plan = settle_micro_batch(config, plan, model, accelerator, resuming=resuming)
    about_stage = staging.enter(begin)
    if average is not None:
        staging.place(average.model)

    # All of it told and saved before the first step.
    facts = {
        "plan": {**plan.to_mapping(), "tuned": staging.to_mapping()},
        "environment": environment(),
        "load_report": report.to_mapping(),
    }
    on_main(accelerator, lambda: open_run_folder(run_dir, config, facts, start, resuming=resuming))
    check_shared(accelerator, run_dir / "config.yaml")
    console.log_to(run_dir / "run.log")
    place = f"{accelerator.device}, {threads} threads"
    tuned = staging.tuned[plan.stages.index(begin)]
    console.say(*start_screen(config, model=model, report=report, tuned=tuned, splits=splits, plan=plan, place=place))
    console.say(*about_metric, *about_data, *about_stage)
    accelerator.init_trackers("vit_finetune", config=flat(values))
    progress = Progress()
    if found is not None:
        progress = restore(
            run_dir,
            found,
            model=model,
            optimizer=staging.optimizer,
            accelerator=accelerator,
            console=console,
            metric=plan.metric,
            keep_last=config.checkpoint.keep_last,
            keep_threads=config.run.num_threads == "auto",
            average=average,
        )

    # Training, with evaluation and checkpoints on the way; most runs have one stage.
    feeder = open_feeder(config, splits, preprocess=preprocess, plan=plan, accelerator=accelerator, console=console)
    frozen = FrozenWork(config, model, [stage.boundary for stage in staging.tuned], feeder, console)
    options = FitOptions(
        objective=objective,
        max_grad_norm=config.train.max_grad_norm,
        metric=plan.metric,
        patience=config.train.early_stopping_patience,
        keep_last=config.checkpoint.keep_last,
        every_minutes=config.checkpoint.every_minutes,
        asynchronous=config.checkpoint.asynchronous,
        log_every_steps=config.run.log_every_steps,
        settings={"data": data_hash},
        name_sample=splits.train.name,
        count_images=feeder.skipped.count if feeder.skipped.allowed else None,
    )
    train = partial(
        fit,
        accelerator=accelerator,
        plan=plan,
        options=options,
        batches=profiled(frozen.train(progress.step), config.run.profile, accelerator, run_dir, console),
        evaluate=frozen.val_scorer(),
        run_dir=run_dir,
        console=console,
        average=average,
        stop=stop,
    )

    def after_probe() -> None:
        if config.train.wise_ft:  # from here on the whole network is tuned
            on_main(accelerator, lambda: save_start(run_dir, model.state_dict()))

    with stop.listening():
        done = staging.run(train, progress, console, after_probe=after_probe)

    # The best checkpoint, scored on the test split (once) or on val, written so that others open it.
    best_step = done.best_step if done.best_step is not None else done.step
    model = staging.bare()
    model.load_state_dict(load_weights(run_dir / "checkpoints", best_step, averaged=done.best_is_average))
    if config.tuning.lora is not None:  # kept in peft's form, then scored and exported as part of the weights
        on_main(accelerator, lambda: save_adapter(model, run_dir / "adapter", base=report.source))
        merge_lora(model)
    blend = blend_with_start(config, model, feeder, load_start(run_dir)) if config.train.wise_ft else None
    final_split, pictures = ("test", splits.test) if splits.test is not None else ("val", splits.val)
    result, thresholds, calibration = feeder.score_at_the_end(model)
    at = thresholds if splits.test is not None else None
    beside = {} if pictures is None else feeder.score_beside(model, pictures, thresholds=at)
    model = model.to("cpu").eval()
    finished = RunResult(run_dir, model, {} if result is None else result.metrics, best_step, done.step)

    def write() -> None:
        names = splits.class_names
        folder = partial(export_model_folder, model, run_dir / "model", preprocess=preprocess, class_names=names)
        folder(thresholds=thresholds, temperature=temperature_of(calibration), overwrite=True)
        summary: dict[str, Any] = {"best_step": best_step, "num_steps": done.step}
        if average is not None:
            summary["is_average"] = done.best_is_average
        if calibration is not None:
            summary["calibration"] = asdict(calibration)
        if thresholds is not None:
            summary["thresholds"] = dict(zip(names, thresholds, strict=True))
        if result is not None and pictures is not None:
            files = [pictures.name(index) for index in range(len(pictures))]
            write = partial(write_evaluation, run_dir / "predictions.parquet", result, names=files, class_names=names)
            write(split=final_split, thresholds=thresholds)
            summary = {"split": final_split, **result.metrics, "num_samples": result.num_samples, **summary}
            summary["num_skipped"] = feeder.skipped.number_in(pictures)
            summary["per_class"] = result.per_class
            if final_split == "test":
                summary["num_test_openings"] = note_opening(run_dir, command="train", metrics=result.metrics)
        summary |= beside
        if blend is not None:
            summary["wise_ft"] = {"alpha": blend.chosen, "val": list(blend.rows)}
        write_json(run_dir / "metrics.json", summary)

    on_main(accelerator, write)
    about_report = on_main(accelerator, lambda: report_at_end(config, splits))
    end_run(accelerator)
    console.say(*beside_lines(beside, plan.metric), *feeder.lines(), *opening_lines(run_dir), *about_report)
    console.say(
        *end_screen(
            run_dir, finished.metrics, best_step=best_step, split=final_split, blend=blend, calibration=calibration
        )
    )
    return finished
