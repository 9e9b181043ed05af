"""The end of a run under a budget: the best model scored as others will open it, and the table of rungs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_finetune.common.durations import duration_text
from vit_finetune.common.files import atomic_file, write_json
from vit_finetune.common.layout import rung_dir
from vit_finetune.config import Config
from vit_finetune.data import ImageSet, Splits
from vit_finetune.data.corruptions import corruption_lines
from vit_finetune.evaluation import Calibration, EvalResult, note_opening, opening_lines, remeasured, write_evaluation
from vit_finetune.ladder.decisions import Decision
from vit_finetune.models import Backbone
from vit_finetune.predict import Predictor, evaluate, evaluate_corrupted
from vit_finetune.report import report_at_end
from vit_finetune.training import RunConsole, on_main

if TYPE_CHECKING:
    from accelerate import Accelerator


PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Row:
    """What became of a rung.

    Attributes:
        rung: its name.
        decision: about it.
        metrics: its figures on val; None where it was not climbed or failed.
        seconds: that it took in this process; None where it was not climbed.
        failed: why it gave no model, if it was climbed and did not.
    """

    rung: str
    decision: Decision
    metrics: dict[str, float] | None = None
    seconds: float | None = None
    failed: str | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return what does not depend on the clock, for metrics.json."""
        facts = {"rung": self.rung, "decision": self.decision.decision, "num_steps": self.decision.num_steps}
        return {**facts, "starts_from": self.decision.starts_from, "failed": self.failed, "val": self.metrics}


def behind(networks: Sequence[Row], best: Row | None, *, metric: str) -> float:
    """Return by how much of a metric the best network is behind the best rung; 0 for the loss, which has no scale.

    Args:
        networks: rungs that left one.
        best: the best rung.
        metric: what rungs are compared by.
    """
    values = [row.metrics[metric] for row in networks if row.metrics is not None]
    if metric == "loss" or not values or best is None or best.metrics is None:
        return 0.0
    return best.metrics[metric] - max(values)


def finish(
    config: Config, splits: Splits, accelerator: Accelerator, *, best: Row, rows: Sequence[Row], console: RunConsole
) -> tuple[Backbone, dict[str, float], int]:
    """Score `model/` on the test split, or take over the rung's figures on val; write predictions, figures, report.

    Args:
        config: of the run.
        splits: all of them.
        accelerator: of the run.
        best: the rung that the model is of.
        rows: all rungs.
        console: told of corrupted pictures, of openings of the test split, and of the report.

    Returns:
        The network on the CPU, the figures, and the step of the rung's run that it is of.
    """
    run_dir = Path(config.run.dir)
    rung = rung_dir(run_dir, best.rung)
    figures: dict[str, Any] = json.loads((rung / "metrics.json").read_text(encoding="utf-8"))
    best_step = int(figures.get("best_step") or 0)
    predictor = Predictor(run_dir / "model", device=accelerator.device.type)

    def work() -> dict[str, float]:
        metrics, counted = best.metrics or {}, {name: figures[name] for name in ("num_samples", "per_class")}
        calibration = _calibration_of(figures)
        if splits.test is None:
            with atomic_file(run_dir / PREDICTIONS) as temporary:
                shutil.copyfile(rung / PREDICTIONS, temporary)
        else:
            result = evaluate(run_dir / "model", splits, split="test", predictor=predictor)
            metrics, counted = result.metrics, {"num_samples": result.num_samples, "per_class": result.per_class}
            write_predictions_of(splits.test, result, run_dir / PREDICTIONS, split="test", splits=splits)
            counted["num_test_openings"] = note_opening(run_dir, command="train", metrics=metrics)
            console.say(*opening_lines(run_dir))
            calibration = calibration and remeasured(calibration, result, measured_on="test")
        summary: dict[str, Any] = {
            "split": "val" if splits.test is None else "test",
            **metrics,
            "best_rung": best.rung,
            "best_step": best_step,
            "num_steps": sum(row.decision.num_steps or 0 for row in rows if row.metrics is not None),
            "ladder": [row.to_mapping() for row in rows],
            **counted,
            "calibration": calibration and asdict(calibration),
        }
        if config.evaluation.corruptions:
            score = partial(evaluate_corrupted, run_dir / "model", splits, predictor=predictor)
            table = summary["corruptions"] = score(split=summary["split"], seed=config.run.seed)
            console.say(*(f"corrupt  {line}" for line in corruption_lines(table, config.evaluation.metric)))
        write_json(run_dir / "metrics.json", summary)
        return metrics

    metrics = on_main(accelerator, work)
    console.say(*on_main(accelerator, lambda: report_at_end(config, splits)))
    return predictor.model.to("cpu").eval(), metrics, best_step


def _calibration_of(figures: Mapping[str, Any]) -> Calibration | None:
    """Return what a rung fitted on val; a rung of an earlier version has nothing."""
    fitted = figures.get("calibration")
    return None if fitted is None else Calibration(**fitted)


def write_predictions_of(pictures: ImageSet, result: EvalResult, path: Path, *, split: str, splits: Splits) -> None:
    """Write what a model said about each picture of a split."""
    names = [pictures.name(index) for index in range(len(pictures))]
    write_evaluation(path, result, names=names, split=split, class_names=splits.class_names)


def table(rows: Sequence[Row], *, best: Row, metric: str) -> list[str]:
    """Return the rungs as lines: figure on val, loss, steps, seconds, and what happened.

    Args:
        rows: all rungs, in order.
        best: the one whose model was kept.
        metric: of the val split, which decided.
    """
    width = max(len(row.rung) for row in rows)
    lines = [f"ladder   {'rung':<{width}}  {'val ' + metric:>14}  {'val loss':>8}  {'steps':>6}  {'time':>12}"]
    for row in rows:
        if row.metrics is None:
            lines.append(
                f"ladder   {row.rung:<{width}}  {'failed' if row.failed else 'skipped'}: {row.decision.reason}"
            )
            continue
        steps = "-" if row.decision.num_steps is None else f"{row.decision.num_steps}"
        took = "-" if row.seconds is None else duration_text(row.seconds)
        mark = "  (best)" if row.rung == best.rung else ""
        figures = f"{row.metrics[metric]:>14.4f}  {row.metrics['loss']:>8.4f}"
        lines.append(f"ladder   {row.rung:<{width}}  {figures}  {steps:>6}  {took:>12}{mark}")
    return lines
