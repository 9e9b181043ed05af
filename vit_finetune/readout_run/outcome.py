"""What a readout run leaves behind: figures, predictions, timings, and the finished run read back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_finetune.common.files import write_json, write_text
from vit_finetune.data import Splits
from vit_finetune.evaluation import (
    Calibration,
    EvalResult,
    calibrate,
    note_opening,
    opening_lines,
    score,
    write_evaluation,
)
from vit_finetune.models import Backbone, Readout
from vit_finetune.training.energy import EnergyMeter
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.trials import Trial
from vit_finetune.weights import from_pretrained

METRICS_FILE = "metrics.json"  # written last: it says that the run is done


@dataclass(frozen=True)
class ReadoutResult:
    """A finished run of `tuning.mode: readout`.

    Attributes:
        run_dir: its folder.
        model: the network with the chosen readout, on the CPU, in eval mode.
        metrics: figures of the test split if there is one, else of val: `loss`, `accuracy`, ... as fractions.
        val_metrics: figures of the val split; empty without one.
        chosen: the readout, its settings and its cross-validated figures.
    """

    run_dir: Path
    model: Backbone
    metrics: dict[str, float]
    val_metrics: dict[str, float]
    chosen: dict[str, Any]


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features in the place of pictures, so that a readout is scored as any network is."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass
class Clock:
    """Seconds of the parts of a run, and their energy once there is a meter, for timing.jsonl."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    meter: EnergyMeter | None = None
    since: float = field(default_factory=time.perf_counter)

    def lap(self, what: str) -> float:
        """Note and return the seconds since the last lap."""
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        self.rows.append({"part": what, "seconds": seconds, **(self.meter.row() if self.meter else {})})
        return seconds


def score_readout(table: FeatureTable, readout: Readout, class_names: tuple[str, ...]) -> EvalResult:
    """Score a split from its features."""
    rows = np.arange(len(table))
    batches = (
        FeatureBatch(
            torch.cat([table.read(item, part) for item in readout.inputs], dim=1),
            table.targets(part),
            torch.from_numpy(part),
        )
        for part in np.array_split(rows, max(1, -(-len(rows) // 256)))
    )
    return score(readout, batches, class_names=class_names, num_expected=len(rows), keep_predictions=True)


def calibration_of(results: Mapping[str, EvalResult]) -> Calibration | None:
    """Return the temperature fitted on val, measured on test if there is one; None without val."""
    if "val" not in results:
        return None
    measured = "test" if "test" in results else "val"
    return calibrate(results["val"], results[measured], measured_on=measured)


def write_outcome(
    run_dir: Path,
    *,
    splits: Splits,
    trials: list[Trial],
    best: Trial,
    results: dict[str, EvalResult],
    corrupted: dict[str, Any] | None,
    calibration: Calibration | None,
    kind: str,
    clock: Clock,
) -> None:
    """Write what was tried, how it did and how long it took; metrics.json comes last and says that the run is done."""
    tried = [trial.to_mapping() for trial in trials]
    write_json(run_dir / "readout.json", {"chosen": best.to_mapping(), "model": kind, "tried": tried})
    rows = [{"step": 0, "epoch": 0.0, "split": name, **result.metrics} for name, result in results.items()]
    write_text(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    seconds = dict.fromkeys((trial.readout for trial in trials), 0.0)
    for trial in trials:
        seconds[trial.readout] += trial.seconds
    laps = [*clock.rows, *({"part": f"search {name}", "seconds": value} for name, value in seconds.items())]
    write_text(run_dir / "timing.jsonl", "".join(json.dumps(row) + "\n" for row in laps))
    summary: dict[str, Any] = {"best_step": 0, "num_steps": 0, "readout": best.to_mapping()}
    final = "test" if "test" in results else "val"
    if final in results:
        result, pictures = results[final], dict(splits.named())[final]
        files, names = [pictures.name(index) for index in range(len(pictures))], splits.class_names
        write_evaluation(run_dir / "predictions.parquet", result, names=files, split=final, class_names=names)
        summary = {"split": final, **result.metrics, "num_samples": result.num_samples, **summary}
        summary["per_class"] = result.per_class
        if final == "test":
            summary["num_test_openings"] = note_opening(run_dir, command="train", metrics=result.metrics)
    if calibration is not None:
        summary["calibration"] = asdict(calibration)
    if corrupted is not None:
        summary["corruptions"] = corrupted
    write_json(run_dir / METRICS_FILE, summary)


def finished_run(run_dir: Path) -> ReadoutResult:
    """Return a finished run as its folder tells it."""
    chosen = json.loads((run_dir / "readout.json").read_text(encoding="utf-8"))["chosen"]
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    figures = {row["split"]: {key: row[key] for key in row if key not in ("step", "epoch", "split")} for row in rows}
    model, _ = from_pretrained(run_dir / "model")
    metrics = figures.get("test", figures.get("val", {}))
    return ReadoutResult(run_dir, model.eval(), metrics, figures.get("val", {}), chosen)


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings as `key value, key value`."""
    if "mean_of" in settings:
        return " and ".join(in_words(part) for part in settings["mean_of"])
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def end_screen(result: ReadoutResult, note: str) -> list[str]:
    """Return what came out and what to type next."""
    chosen = result.chosen
    figures = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    return [
        *opening_lines(result.run_dir),
        f"done     {chosen['readout']} ({in_words(chosen['settings'])}): {figures or 'no split to score'}",
        f"model    {result.run_dir / 'model'}   ({note})",
        f"next     vit-finetune predict {result.run_dir} PICTURE_OR_FOLDER...",
    ]
