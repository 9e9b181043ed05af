"""What a run saved, read once: every file that is there, and nothing that is not.

The report knows a run through this alone; a file that an older run or an unfinished one lacks is empty here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_finetune.common.errors import RequestError
from vit_finetune.common.layout import rung_dir
from vit_finetune.training.journal import Journal

PREDICTIONS = "predictions.parquet"
_CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Attributes:
        path: its folder.
        config: config.yaml as plain values.
        metrics: metrics.json; empty while the run has not ended.
        plan: plan.json.
        environment: environment.json.
        load_report: load_report.json; of the rung that won, under a budget.
        readout: readout.json of a readout run.
        steps: rows of metrics.jsonl; of the rung that won, under a budget.
        timings: rows of timing.jsonl, likewise.
        started: the first and last time in run.log, ISO 8601; empty without one.
        bad_images: rows of bad_images.jsonl.
    """

    path: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    load_report: Mapping[str, Any]
    readout: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    timings: Sequence[Mapping[str, Any]]
    started: tuple[str, ...]
    bad_images: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.path.resolve().name

    @property
    def is_done(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.metrics)

    @property
    def is_multilabel(self) -> bool:
        """Whether pictures have any number of classes."""
        return "mean_average_precision" in self.metrics

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names in the order of the head; empty where the run scored nothing."""
        return tuple(row["class"] for row in self.metrics.get("per_class", ()))

    @property
    def split(self) -> str:
        """The split that the figures are of: test or val; empty where there is neither."""
        return str(self.metrics.get("split", ""))

    @property
    def figures(self) -> dict[str, float]:
        """The figures of that split by name, such as accuracy and loss."""
        return {name: value for name, value in self.metrics.items() if isinstance(value, float)}


def read_run(path: str | Path) -> RunFolder:
    """Read the folder of a run, finished or not.

    Args:
        path: the folder.

    Raises:
        RequestError: it is no run's folder, or a file of it is damaged; the message names it.
    """
    folder = Path(path)
    if not (folder / _CONFIG).is_file():
        raise RequestError(f"{folder} is no run's folder (it has no {_CONFIG}); give the run.dir of a training")
    try:
        config = yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RequestError(f"cannot read {folder / _CONFIG}: {error}") from None
    metrics = _json(folder / "metrics.json")
    learned = rung_dir(folder, metrics["best_rung"]) if "best_rung" in metrics else folder
    return RunFolder(
        path=folder,
        config=config,
        metrics=metrics,
        plan=_json(folder / "plan.json"),
        environment=_json(folder / "environment.json"),
        load_report=_json(learned / "load_report.json"),
        readout=_json(learned / "readout.json"),
        steps=_rows(learned / "metrics.jsonl"),
        timings=_rows(learned / "timing.jsonl"),
        started=_times(folder / "run.log"),
        bad_images=_rows(folder / "bad_images.jsonl"),
    )


def _json(path: Path) -> dict[str, Any]:
    """Return an object, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise RequestError(f"cannot read {path}: it holds no object")
    return values


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of JSON lines."""
    try:
        return Journal(path).rows()
    except ValueError as error:
        raise RequestError(f"cannot read {path}: {error}") from None


def _times(path: Path) -> tuple[str, ...]:
    """Return the times of the first and last line of a log."""
    if not path.is_file():
        return ()
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line[:4].isdigit()]
    return (lines[0].split(" ")[0], lines[-1].split(" ")[0]) if lines else ()
