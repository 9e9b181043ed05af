"""Every number of a run that follows from its configuration, its pictures and its processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vit_finetune.common.errors import RequestError
from vit_finetune.common.sizes import parse_size
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.models import Backbone, NetworkConfig, check_mergeable
from vit_finetune.training import TrainPlan, micro_batch, plan_stages, steps_in
from vit_finetune.training.memory import find_micro_batch
from vit_finetune.training.micro_batches import remembered_micro_batch, with_micro_batch
from vit_finetune.training.plan import largest_share
from vit_finetune.training.sharding import FSDP, is_wanted
from vit_finetune.training.stages import PictureSize, plan_sizes

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_plan(config: Config, splits: Splits, accelerator: Accelerator, *, network: NetworkConfig) -> TrainPlan:
    """Derive every number of the run.

    Raises:
        RequestError: the numbers contradict each other.
    """
    _check(config, splits, network)
    train, batch, count = config.train, config.train.global_batch_size, len(splits.train)
    clock = {"num_train": count, "global_batch_size": batch}
    schedule, evaluation, tuning = config.schedule, config.evaluation, config.tuning
    processes, kind = accelerator.num_processes, accelerator.device.type
    size = micro_batch(
        train.per_device_batch_size,
        global_batch_size=batch,
        num_processes=processes,
        device_kind=FSDP if is_wanted(config.run.strategy) else kind,
        num_tokens=network.num_tokens,
        in_pairs=train.mixes,
    )
    num_steps = train.steps or steps_in(train.epochs or 0, **clock)
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
        save_every=_save_every(config, clock),
        num_processes=processes,
        mixed_precision=accelerator.mixed_precision,
        metric=config.evaluation.metric,
        seed=config.run.seed,
        stages=plan_stages(
            tuning.mode,
            num_steps=num_steps,
            depth=network.depth,
            num_blocks=tuning.num_blocks,
            num_stages=tuning.num_stages,
            probe_steps=probe_steps,
        ),
        probe_steps=probe_steps,
        probe_lr=tuning.probe_lr,
        sizes=_sizes(config, network, num_steps, kind),
    )


def _check(config: Config, splits: Splits, network: NetworkConfig) -> None:
    """Refuse what is scored where there is nothing to score, or by a network that cannot."""
    for key in ("wise_ft", "early_stopping_patience"):
        if getattr(config.train, key) and splits.val is None:
            raise RequestError(f"train.{key} needs val pictures, and there are none; give data.val_split, or drop it")
    if config.evaluation.merge_tokens:
        check_mergeable(network)


def _sizes(config: Config, network: NetworkConfig, num_steps: int, device_kind: str) -> tuple[PictureSize, ...]:
    """Return the sizes of the training pictures; refuse what a network or a device cannot do with several."""
    train, sizes = config.train, config.train.progressive_sizes
    repeats_on_cuda = config.run.deterministic and device_kind == "cuda"
    if sizes == "auto":
        # Measured where the whole network trains.
        is_possible = network.places_any_grid and not train.compile and not repeats_on_cuda
        sizes = sizes if is_possible and config.tuning.mode == "full" else ()
    elif sizes and not network.places_any_grid:
        raise RequestError(
            f"train.progressive_sizes needs positions that are made for each picture size, which a {network.KIND} has "
            "not; leave it out"
        )
    elif sizes and repeats_on_cuda:
        raise RequestError(
            "train.progressive_sizes resamples the position table, for whose gradient a GPU has no algorithm that "
            "repeats bit for bit; leave it or run.deterministic out"
        )
    return plan_sizes(
        sizes,
        until=train.progressive_until,
        num_steps=num_steps,
        target=network.img_size,
        patch_size=network.patch_size,
    )


def _save_every(config: Config, clock: dict[str, int]) -> int | None:
    """Return the steps between checkpoints; None where they go with the evaluations."""
    epochs = config.checkpoint.every_epochs
    return config.checkpoint.every_steps if epochs is None else steps_in(epochs, **clock)


def settle_micro_batch(
    config: Config, plan: TrainPlan, model: Backbone, accelerator: Accelerator, *, resuming: bool
) -> TrainPlan:
    """Return the plan with the micro-batch that plan.json remembers, or the largest that fits where none is given.

    Raises:
        RequestError: not even one picture fits.
    """
    remembered = remembered_micro_batch(Path(config.run.dir)) if resuming else None
    if remembered is not None:
        share = largest_share(plan.global_batch_size, plan.num_processes, in_pairs=config.train.mixes)
        return with_micro_batch(plan, min(remembered, share))
    if config.train.per_device_batch_size != "auto" or is_wanted(config.run.strategy):
        return plan
    limit = config.train.max_memory
    return find_micro_batch(
        model,
        plan,
        accelerator=accelerator,
        image_size=(model.config.in_chans, *model.config.img_size),
        max_memory=None if limit is None else parse_size(limit, "train.max_memory"),
        least=2 if config.train.mixes else 1,
        states_per_parameter=2 if config.train.ema_decay is None else 3,
    )
