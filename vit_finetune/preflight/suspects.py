"""Labels that are probably wrong, by the features of the recipe's own network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_finetune.assembly import build_model, preprocess_of
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.audit.facts import PictureFacts
from vit_finetune.data.audit.findings import Example, Finding, found, printable
from vit_finetune.data.loader import default_num_workers, eval_batches
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.models import FeatureLayout
from vit_finetune.readout_run.planning import chosen_layers
from vit_finetune.training.feature_cache import FeatureCache, default_cache_dir, size_of
from vit_finetune.training.features import FeatureSource, FeatureTable, cached_features, weights_digest
from vit_finetune.training.label_errors import LINEAR, NUM_FOLDS, LabelOpinion, judge_labels

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCH = 64  # pictures per forward pass


@dataclass(frozen=True)
class Suspects:
    """What was found about labels.

    Attributes:
        findings: the suspected ones, the worst first.
        ranking: one row for every training picture, the most suspicious first; empty where it was not looked at.
    """

    findings: list[Finding]
    ranking: list[dict[str, Any]]


def suspect_labels(config: Config, splits: Splits, facts: Sequence[PictureFacts], accelerator: Accelerator) -> Suspects:
    """Rank the labels of the training pictures by how probably they are wrong.

    Args:
        config: of the run; its network and weights read the pictures, its readout section says where features are kept.
        splits: the data set.
        facts: of the training pictures.
        accelerator: where the network runs.
    """
    if reason := _why_not(config, splits):
        return Suspects(found("not_checked", [Example("labels", reason)]), [])
    try:
        table = _table(config, splits, facts, accelerator)
    except RequestError as error:
        return Suspects(found("not_checked", [Example("labels", str(error))]), [])
    opinion = judge_labels(table, seed=config.run.seed)
    rows = [_row(splits, opinion, place) for place in opinion.order.tolist()]
    examples = [
        Example(row["name"], _in_words(row), (("train", int(place)),))
        for row, place in zip(rows[: opinion.num_wrong], opinion.order, strict=False)
    ]
    return Suspects(found("label_error", examples), rows)


def _why_not(config: Config, splits: Splits) -> str:
    """Return why labels cannot be judged, or nothing."""
    if config.model.pretrained is None:
        return "the network starts from random weights, whose features say nothing; name model.pretrained"
    if splits.train.is_multilabel:
        return "pictures have lists of classes, for which there is no ranking"
    least = np.bincount(splits.train.labels).min()
    if len(splits.train) < 10 * NUM_FOLDS or least < 2:
        return f"too few pictures: {10 * NUM_FOLDS} and two of each class are the least"
    return ""


def _table(config: Config, splits: Splits, facts: Sequence[PictureFacts], accelerator: Accelerator) -> FeatureTable:
    """Return the features of the training pictures, out of the cache of the readouts or into it."""
    model, report = build_model(config, splits)
    preprocess = preprocess_of(config, model, report)
    model.to(accelerator.device).eval()
    section, count = config.readout, len(splits.train)
    layers = chosen_layers(section.layers, model.config.depth, LINEAR)
    root = default_cache_dir("features") if section.cache_dir is None else Path(section.cache_dir).expanduser()
    cache = FeatureCache(root, int(section.cache_limit_gb * 1e9))
    source = FeatureSource(model, FeatureLayout(layers, section.grid), section.dtype, weights_digest(model))
    digest = hashlib.sha256(b"".join(bytes.fromhex(fact.sha256) for fact in facts)).hexdigest()
    cache.check_room([size_of(source.shapes(count), np.dtype(section.dtype))])
    size, workers = config.evaluation.batch_size, config.data.num_workers
    arrays, _ = cached_features(
        source,
        lambda: eval_batches(
            splits.train,
            build_eval_transform(preprocess),
            batch_size=_BATCH if isinstance(size, str) else size,
            num_workers=default_num_workers(accelerator.device.type, 1) if isinstance(workers, str) else workers,
        ),
        count=count,
        facts=source.facts(digest, {"eval": preprocess.to_mapping()}, accelerator),
        cache=cache,
        accelerator=accelerator,
    )
    del model
    torch.cuda.empty_cache()
    return FeatureTable((arrays,), splits.train.labels.astype(np.int64), layers, len(splits.class_names))


def _row(splits: Splits, opinion: LabelOpinion, place: int) -> dict[str, Any]:
    """Return what is thought of the label of one picture."""
    names = splits.class_names
    return {
        "name": printable(splits.train.name(place)),
        "label": names[int(splits.train.labels[place])],
        "probability": round(float(opinion.own[place]), 6),
        "guess": names[int(opinion.guess[place])],
        "neighbours": names[int(opinion.neighbours[place])],
    }


def _in_words(row: dict[str, Any]) -> str:
    label, guess, neighbours = (printable(row[key]) for key in ("label", "guess", "neighbours"))
    return f"labelled {label} (probability {row['probability']:.3f}); likelier {guess}, its neighbours say {neighbours}"
