"""Run folders made without a training: what a run saves, from arrays that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_finetune.common.files import write_json
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.image_set import FileStore
from vit_finetune.data.manifest import write_manifest
from vit_finetune.evaluation import EvalResult, write_evaluation
from vit_finetune.evaluation.metrics import METRICS
from vit_finetune.evaluation.multilabel import tune_thresholds

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities of logits [n, K], float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def figures(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> tuple[dict[str, float], list[Any]]:
    """Return metrics and rows of classes as `evaluation.score` gives them, with scikit-learn's figures."""
    from sklearn.metrics import f1_score

    guesses = probabilities.argmax(axis=1)
    rows = []
    for k, name in enumerate(names):
        have, right = int((labels == k).sum()), int(((labels == k) & (guesses == k)).sum())
        rows.append(
            {"class": name, "num_samples": have, "num_correct": right, "accuracy": right / have if have else None}
        )
    metrics = {
        "loss": float(-np.log(probabilities[np.arange(len(labels)), labels]).mean()),
        "accuracy": float((labels == guesses).mean()),
        "macro_accuracy": float(np.mean([row["accuracy"] for row in rows if row["num_samples"]])),
        "macro_f1": float(f1_score(labels, guesses, average="macro")),
    }
    assert set(metrics) < set(METRICS)
    return metrics, rows


def write_run(
    folder: Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    *,
    files: Sequence[str] | None = None,
    split: str = "val",
    **sections: Any,
) -> Path:
    """Write config, metrics, predictions, curves and plan of a run that ended.

    Args:
        folder: to make.
        labels: [n], or [n, K] of several classes a picture.
        probabilities: [n, K].
        names: K class names.
        files: what each picture is called.
        split: that was scored.
        **sections: of the configuration.
    """
    folder.mkdir(parents=True)
    config = {"model": {"pretrained": None, "name": "vit_tiny_patch16_224"}, "train": {"steps": 40}, **sections}
    config.setdefault("data", {"root": "pictures"})
    config["run"] = {"dir": str(folder), **sections.get("run", {})}
    (folder / "config.yaml").write_text(Config.load(config).to_yaml(), encoding="utf-8")
    thresholds = None
    if labels.ndim == 2:
        thresholds = tune_thresholds(labels, probabilities)
        metrics, rows = several(labels, probabilities, names, thresholds)
    else:
        metrics, rows = figures(labels, probabilities, names)
    indices = np.arange(len(labels))
    result = EvalResult(metrics, len(labels), rows, indices, labels, probabilities)
    called = list(files) if files is not None else [f"pictures/{split}/{index}.png" for index in indices]
    predictions = folder / "predictions.parquet"
    write_evaluation(predictions, result, names=called, split=split, class_names=names, thresholds=thresholds)
    counted = {"num_samples": len(labels), "best_step": 30, "num_steps": 40}
    write_json(folder / "metrics.json", {"split": split, **metrics, **counted, "per_class": rows})
    write_json(folder / "plan.json", {"num_steps": 40, "lr": 0.001, "stages": [{"mode": "full", "first_step": 0}]})
    write_json(folder / "environment.json", {"python": "3", "command": ["/usr/bin/vit-finetune", "train", "a b.yaml"]})
    write_curves(folder)
    return folder


def several(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], cuts: Sequence[float]) -> Any:
    """Return metrics and rows of several classes a picture."""
    from vit_finetune.evaluation.multilabel import _of_class, _over_classes

    rows = [_of_class(name, labels[:, k], probabilities[:, k], cuts[k]) for k, name in enumerate(names)]
    return {"loss": 0.1, **_over_classes(rows, labels, probabilities, np.asarray(cuts))}, rows


def write_curves(folder: Path, *, steps: int = 40) -> None:
    """Write metrics.jsonl and timing.jsonl of a training that went well."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "epoch": step / 10, "split": "train", "loss": 2.0 / step, "lr": 1e-3 / step})
        if step % 10 == 0:
            figures = {"loss": 2.2 / step, "accuracy": step / 50, "macro_accuracy": step / 60}
            rows.append({"step": step, "epoch": step / 10, "split": "val", **figures})
    clock = {"seconds": 0.5, "images_per_second": 64.0, "data_wait_seconds": 0.05, "peak_memory_bytes": 10**9}
    timings = [{"step": step, **clock} for step in range(1, steps + 1)]
    for name, lines in (("metrics.jsonl", rows), ("timing.jsonl", timings)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


def add_pictures(folder: Path, root: Path, labels: np.ndarray, names: Sequence[str], *, copies: int = 0) -> list[str]:
    """Write a picture of noise for each label and the manifest of the run; return their names below `root`.

    Args:
        folder: of the run.
        root: where the pictures go.
        labels: [n] or [n, K] of the val split; train gets the same pictures' classes, with pictures of its own.
        names: K class names.
        copies: how many pictures of train are also in val.
    """
    rng = np.random.default_rng(0)
    stores = {}
    for split in ("train", "val"):
        kept = []
        for index, label in enumerate(labels.tolist()):
            path = root / split / f"{index}-{HOSTILE[index % 3].replace('/', '_')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(40 * np.max(label) + rng.normal(60, 30, (24, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            if split == "val" and index < copies:
                path.write_bytes((root / "train" / path.name).read_bytes())
            kept.append(f"{split}/{path.name}")
        stores[split] = ImageSet(FileStore(root, tuple(kept)), labels.astype(np.int64) if labels.ndim == 1 else labels)
    splits = Splits(train=stores["train"], val=stores["val"], test=None, class_names=tuple(names))
    write_manifest(splits, folder / "manifest.parquet")
    return [stores["val"].name(index) for index in range(len(labels))]
