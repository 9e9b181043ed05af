"""What a person is told before a run starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.corruptions import corruption_lines
from vit_finetune.evaluation import Blend, Calibration
from vit_finetune.models import Backbone
from vit_finetune.training import TrainPlan
from vit_finetune.tuning import Tuned
from vit_finetune.weights import LoadReport


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return section.key -> value, with lists as text: what trackers take."""
    return {
        f"{section}.{key}": value if isinstance(value, (int, float, str, bool)) else json.dumps(value)
        for section, part in values.items()
        for key, value in part.items()
    }


def start_screen(
    config: Config,
    *,
    model: Backbone,
    report: LoadReport,
    tuned: Tuned,
    splits: Splits,
    plan: TrainPlan,
    place: str,
) -> list[str]:
    """Return what a person wants to know before the run starts."""
    height, width = model.config.img_size
    sizes = ", ".join(f"{len(pictures):,} {name}" for name, pictures in splits.named())
    epochs = plan.epoch_at(plan.num_steps)
    return [
        f"model    {model.name} at {height}x{width}: {tuned.num_trained:,} parameters trained, "
        f"{tuned.num_frozen:,} frozen ({config.tuning.mode})",
        *(f"weights  {line}" for line in report.lines()),
        f"data     {sizes} pictures, {len(splits.class_names)} classes",
        *(f"data     {note}" for note in splits.notes),
        f"plan     {plan.num_steps} steps x {plan.global_batch_size} pictures = {epochs:.2f} epochs, "
        f"{plan.warmup_steps} steps of warm-up, then {plan.schedule}, peak lr {plan.lr:g}",
        f"plan     {plan.num_processes} process(es) x {plan.per_device_batch_size} pictures x "
        f"{plan.gradient_accumulation_steps} accumulated, precision {plan.mixed_precision}, on {place}",
        *_sizes(plan),
        f"learns   {', '.join(_learned(config))}; the best by {plan.metric}",
        f"run      {config.run.dir}",
    ]


def _sizes(plan: TrainPlan) -> list[str]:
    """Return the line about training pictures that change their size."""
    ends = [size.first_step for size in plan.sizes[1:]] + [plan.num_steps]
    told = (f"{size.height}x{size.width} to step {end}" for size, end in zip(plan.sizes, ends, strict=False))
    return [f"sizes    {', '.join(told)}; val is scored at the last"] if plan.sizes else []


def _learned(config: Config) -> Iterator[str]:
    """Yield the task and what of the recipe changes what is learned."""
    train = config.train
    yield train.task
    yield f"imbalance {train.imbalance}"
    for key in ("label_smoothing", "mixup_alpha", "cutmix_alpha", "mixup_off_epoch", "ema_decay"):
        if getattr(train, key):
            yield f"{key} {getattr(train, key):g}"


def beside_lines(beside: Mapping[str, Any], metric: str) -> list[str]:
    """Return what was scored beside the plain figures, for people.

    Args:
        beside: of `Feeder.score_beside`.
        metric: the figure that is told.
    """
    lines = []
    if "corruptions" in beside:
        lines += [f"corrupt  {line}" for line in corruption_lines(beside["corruptions"], metric)]
    if "merged" in beside:
        found = beside["merged"]
        lines.append(f"merged   merge_tokens {found['merge_tokens']}: {metric} {found[metric]:.4f}")
    return lines


def end_screen(
    run_dir: Path,
    metrics: Mapping[str, float],
    *,
    best_step: int,
    split: str,
    blend: Blend | None,
    calibration: Calibration | None,
) -> list[str]:
    """Return what came out and what to type next."""
    figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    blended = [] if blend is None else [f"wise_ft  alpha {blend.chosen:g} is the best of {len(blend.rows)} on val"]
    calibrated = [] if calibration is None else [f"sureness {calibration.line()}"]
    return [
        *blended,
        *calibrated,
        f"done     step {best_step} is the best; {split}: {figures}" if figures else "done",
        f"model    {run_dir / 'model'}   (timm and transformers open this folder)",
        f"next     vit-finetune predict {run_dir} PICTURE_OR_FOLDER...",
    ]
