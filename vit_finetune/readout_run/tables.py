"""The features of every split of a run, out of the cache or into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vit_finetune.assembly import train_transform_of
from vit_finetune.common.layout import MANIFEST
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.batch import Batch
from vit_finetune.data.loader import default_num_workers, eval_batches
from vit_finetune.data.manifest import split_digests
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.models import Backbone
from vit_finetune.readout_run.planning import ReadoutPlan
from vit_finetune.training import RunConsole, on_main
from vit_finetune.training.feature_cache import cache_key
from vit_finetune.training.features import FeatureSource, FeatureTable, cached_features, weights_digest

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCH = 64  # pictures per forward pass: enough to keep a processor busy without a gradient
# What varies the further views, in the data section.
VARIATIONS = ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "random_erasing")


def feature_tables(
    config: Config,
    *,
    model: Backbone,
    preprocess: PreprocessSpec,
    splits: Splits,
    plan: ReadoutPlan,
    accelerator: Accelerator,
    console: RunConsole,
) -> dict[str, FeatureTable]:
    """Return the features of every split, of train in all its views."""
    section, run_dir = config.readout, Path(config.run.dir)
    digests = on_main(accelerator, lambda: split_digests(run_dir / MANIFEST))
    source = FeatureSource(model, plan.layout, section.dtype, weights_digest(model))
    varied = {**config.data.model_dump(mode="json", include=set(VARIATIONS)), "seed": config.run.seed}
    tables, keep = {}, list[str]()
    for name, pictures in splits.named():
        views = []
        for view in range(section.num_views if name == "train" else 1):
            transform = {"eval": preprocess.to_mapping(), **({"view": view, **varied} if view else {})}
            facts = source.facts(digests[name], transform, accelerator)
            arrays, hit = cached_features(
                source,
                _batches(config, pictures, preprocess, view, accelerator),
                count=len(pictures),
                facts=facts,
                cache=plan.cache,
                accelerator=accelerator,
                keep=keep,
            )
            keep.append(cache_key(facts))
            views.append(arrays)
            what, size = f"{name} view {view}", plan.entry_bytes[f"{name} view {view}"]
            console.say(f"features {what}: {'kept' if hit else 'computed'}, {size / 1e6:,.0f} MB in {plan.cache.root}")
        tables[name] = FeatureTable(tuple(views), pictures.labels, plan.layout.layers, len(splits.class_names))
    return tables


def _batches(
    config: Config, pictures: ImageSet, preprocess: PreprocessSpec, view: int, accelerator: Accelerator
) -> Callable[[], Iterable[Batch]]:
    """Return what gives this process's share of pictures, in order: plain, or varied as in epoch `view` of training."""
    workers, size = config.data.num_workers, config.evaluation.batch_size
    if isinstance(workers, str):
        workers = default_num_workers(accelerator.device.type, accelerator.num_processes)
    return lambda: eval_batches(
        pictures,
        train_transform_of(config, preprocess) if view else build_eval_transform(preprocess),
        batch_size=_BATCH if isinstance(size, str) else size,
        seed=config.run.seed,
        epoch=view,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )
