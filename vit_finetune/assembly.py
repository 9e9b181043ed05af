"""What a run is assembled from: the configuration's sections turned into calls of the rooms below.

`finetune()` tells the order in which these happen; nothing here trains, and nothing here writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.loader import Batch, default_num_workers, eval_batches, train_batches
from vit_finetune.data.transforms import build_eval_transform, build_train_transform
from vit_finetune.evaluation import EvalResult, score
from vit_finetune.models import Backbone, create_model, replace_head
from vit_finetune.training import TrainPlan, micro_batch, plan_stages, steps_in
from vit_finetune.tuning import Tuned, add_lora
from vit_finetune.weights import LoadReport, from_pretrained

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_model(config: Config, splits: Splits) -> tuple[Backbone, LoadReport]:
    """Return the network with its new head, and what happened to every tensor."""
    section, num_classes = config.model, len(splits.class_names)
    asked = {
        "img_size": section.img_size,
        "in_chans": section.in_chans,
        "global_pool": section.global_pool,
        "drop_path_rate": section.drop_path_rate,
        "drop_rate": section.drop_rate,
        "pos_drop_rate": section.pos_drop_rate,
        "patch_drop_rate": section.patch_drop_rate,
        "proj_drop_rate": section.proj_drop_rate,
        "attn_drop_rate": section.attn_drop_rate,
    }
    overrides = {key: value for key, value in asked.items() if value is not None} | section.overrides
    if section.pretrained is not None:
        return from_pretrained(
            section.pretrained,
            name=section.name,
            num_classes=num_classes,
            head_init=section.head_init,
            pos_embed=section.pos_embed,
            **overrides,
        )
    name = section.name or ""  # the configuration refuses random weights without a name
    model = replace_head(create_model(name, **overrides), num_classes, init=section.head_init)
    chans, size = model.config.in_chans, model.config.img_size
    spec = PreprocessSpec(input_size=(chans, *size), mean=(0.5,) * chans, std=(0.5,) * chans, source="random weights")
    return model, LoadReport(
        loaded=(),
        resampled={},
        dropped={},
        newly_initialized=tuple(model.state_dict()),
        preprocess=spec,
        class_names=None,
        source="no file: random weights, as asked",
        architecture=name,
        notes=(),
    )


def add_adapters(config: Config, model: Backbone) -> None:
    """Put LoRA's adapters into the network where the recipe trains them."""
    lora = config.tuning.lora
    if lora is not None:
        add_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=lora.target_modules,
            dora=lora.dora,
        )


def preprocess_of(config: Config, model: Backbone, report: LoadReport) -> PreprocessSpec:
    """Return the checkpoint's preprocessing, with what the recipe says laid over it."""
    asked = config.data.model_dump(include={"interpolation", "crop_pct", "crop_mode", "mean", "std"}, exclude_none=True)
    spec = report.preprocess.with_size(*model.config.img_size)
    left = tuple(name for name in spec.assumed if name not in asked)
    return replace(spec, **asked, assumed=left)


def make_plan(config: Config, splits: Splits, accelerator: Accelerator, *, depth: int) -> TrainPlan:
    """Derive every number of the run; `depth` is the network's number of blocks.

    Raises:
        RequestError: the numbers contradict each other.
    """
    if config.evaluation.metric == "top5" and len(splits.class_names) < 5:
        classes = len(splits.class_names)
        raise RequestError(f"evaluation.metric top5 says nothing about {classes} classes; use accuracy")
    train, batch, count = config.train, config.train.global_batch_size, len(splits.train)
    clock = {"num_train": count, "global_batch_size": batch}
    schedule, evaluation = config.schedule, config.evaluation
    processes, kind = accelerator.num_processes, accelerator.device.type
    size = micro_batch(train.per_device_batch_size, global_batch_size=batch, num_processes=processes, device_kind=kind)
    num_steps = train.steps or steps_in(train.epochs or 0, **clock)
    tuning = config.tuning
    probe_steps = tuning.probe_steps or (steps_in(tuning.probe_epochs, **clock) if tuning.probe_epochs else 0)
    return TrainPlan(
        num_train=count,
        num_val=0 if splits.val is None else len(splits.val),
        num_classes=len(splits.class_names),
        num_steps=num_steps,
        warmup_steps=schedule.warmup_steps or steps_in(schedule.warmup_epochs or 0, **clock, least=0),
        schedule=schedule.name,
        lr=config.optimizer.lr,
        global_batch_size=batch,
        per_device_batch_size=size,
        gradient_accumulation_steps=-(-batch // (processes * size)),
        evaluate_every=evaluation.every_steps or steps_in(evaluation.every_epochs or 1, **clock),
        save_every=config.checkpoint.every_steps,
        num_processes=processes,
        mixed_precision=accelerator.mixed_precision,
        seed=config.run.seed,
        stages=plan_stages(
            tuning.mode,
            num_steps=num_steps,
            depth=depth,
            num_blocks=tuning.num_blocks,
            num_stages=tuning.num_stages,
            probe_steps=probe_steps,
        ),
        probe_steps=probe_steps,
        probe_lr=tuning.probe_lr,
    )


@dataclass(frozen=True)
class Feeder:
    """Batches of a run's pictures for this process."""

    config: Config
    splits: Splits
    preprocess: PreprocessSpec
    plan: TrainPlan
    accelerator: Accelerator

    def _share(self) -> dict[str, Any]:
        accelerator, workers = self.accelerator, self.config.data.num_workers
        if isinstance(workers, str):
            workers = default_num_workers(accelerator.device.type, accelerator.num_processes)
        return {
            "rank": accelerator.process_index,
            "world_size": accelerator.num_processes,
            "num_workers": workers,
            "pin_memory": accelerator.device.type == "cuda",
        }

    def train(self, start_step: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of every step from `start_step` to the last."""
        data, plan = self.config.data, self.plan
        transform = build_train_transform(
            self.preprocess,
            scale=data.scale,
            ratio=data.ratio,
            hflip=data.hflip,
            vflip=data.vflip,
            color_jitter=data.color_jitter,
            auto_augment=data.auto_augment,
            random_erasing=data.random_erasing,
        )
        return train_batches(
            self.splits.train,
            transform,
            seed=plan.seed,
            global_batch_size=plan.global_batch_size,
            per_device_batch_size=plan.per_device_batch_size,
            start_step=start_step,
            num_steps=plan.num_steps - start_step,
            **self._share(),
        )

    def val_scorer(self, model: Backbone) -> Callable[[], EvalResult] | None:
        """Return what scores the val split, or None where there is none."""
        val = self.splits.val
        return None if val is None else lambda: self.score(model, val)

    def score(self, model: Backbone, pictures: ImageSet, *, keep_predictions: bool = False) -> EvalResult:
        """Score every picture once over all processes."""
        size = self.config.evaluation.batch_size
        size = self.plan.per_device_batch_size if isinstance(size, str) else size
        return score(
            model,
            eval_batches(pictures, build_eval_transform(self.preprocess), batch_size=size, **self._share()),
            class_names=self.splits.class_names,
            num_expected=len(pictures),
            accelerator=self.accelerator,
            keep_predictions=keep_predictions,
        )


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
        f"data     {sizes} pictures, {len(splits.class_names)} classes ({config.train.task}, imbalance: "
        f"{config.train.imbalance})",
        *(f"data     {note}" for note in splits.notes),
        f"plan     {plan.num_steps} steps x {plan.global_batch_size} pictures = {epochs:.2f} epochs, "
        f"{plan.warmup_steps} steps of warm-up, then {plan.schedule}, peak lr {plan.lr:g}",
        f"plan     {plan.num_processes} process(es) x {plan.per_device_batch_size} pictures x "
        f"{plan.gradient_accumulation_steps} accumulated, precision {plan.mixed_precision}, on {place}",
        f"run      {config.run.dir}",
    ]
