"""How the training went and what it cost: the rows of metrics.jsonl and timing.jsonl as charts and a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from vit_finetune.pages.charts import Series, line_chart
from vit_finetune.report.measured import NAMES
from vit_finetune.report.run_folder import RunFolder


@dataclass(frozen=True)
class Curve:
    """A chart with its legend.

    Attributes:
        title: what it shows.
        chart: the drawing.
        legend: (colour, name) of its lines; empty where the title says it.
    """

    title: str
    chart: Markup
    legend: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Attributes:
        seconds: of all steps together, or of all parts of a readout run; None where nobody timed it.
        images_per_second: the median step's; None where there are no steps.
        data_wait: the share of the time that steps waited for pictures.
        peak_memory_bytes: the most that was held; of the GPU where the run had one.
        parts: (what, seconds) where the run has parts instead of steps.
        energy: (of what, joules) as far as counters told it.
        no_energy: (of what, why it is not known).
    """

    seconds: float | None
    images_per_second: float | None
    data_wait: float | None
    peak_memory_bytes: int | None
    parts: Sequence[tuple[str, float]]
    energy: Sequence[tuple[str, float]]
    no_energy: Sequence[tuple[str, str]]


def curves_of(run: RunFolder) -> list[Curve]:
    """Return loss, the figures of the val split, the learning rate and the gradient's norm over steps."""
    train = [row for row in run.steps if row["split"] == "train" and row["step"] > 0]
    val = [row for row in run.steps if row["split"] == "val"]
    if not train:
        return []
    curves = [_losses(train, val)]
    names = [name for name in ("accuracy", "macro_accuracy", "macro_f1", "mean_average_precision") if _has(val, name)]
    if "macro_accuracy" in names and all(abs(row["macro_accuracy"] - row["accuracy"]) < 1e-9 for row in val):
        names.remove("macro_accuracy")  # of classes of one size both are one line
    if names:
        lines = [_series(val, name, NAMES[name], colour) for colour, name in enumerate(names, start=1)]
        last = ", ".join(f"{line.name} {line.ys[-1]:.1%}" for line in lines)
        limits = _shares([value for line in lines for value in line.ys])
        chart = line_chart(
            lines,
            label=f"On val, at the end: {last}",
            x_title="step",
            tell=lambda value: f"{100 * value:.4g} %",
            y_limits=limits,
        )
        curves.append(Curve("Figures of the val split", chart, [(line.colour, line.name) for line in lines]))
    rate = _series(train, "lr", "learning rate", 1)
    label = f"Learning rate: {max(rate.ys):.2g} at most, {rate.ys[-1]:.2g} at the end"
    limits = (0.0, max(rate.ys) or 1.0)
    curves.append(
        Curve(
            "Learning rate",
            line_chart([rate], label=label, x_title="step", tell=lambda value: f"{value:.1g}", y_limits=limits),
        )
    )
    if _has(train, "grad_norm"):
        norm = _series(train, "grad_norm", "norm of the gradient", 1)
        label = f"Norm of the gradient: {norm.ys[0]:.2g} at first, {norm.ys[-1]:.2g} at the end"
        limits = (0.0, max(norm.ys) or 1.0)
        curves.append(
            Curve(
                "Norm of the gradient, before clipping",
                line_chart([norm], label=label, x_title="step", tell=lambda value: f"{value:.3g}", y_limits=limits),
            )
        )
    return curves


def _losses(train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the loss of training, smoothed over the raw steps, and of val."""
    raw = _series(train, "loss", "train", 1)
    steps = [Series("train, each step", raw.xs, raw.ys, 1, is_faint=True), Series("train", raw.xs, _smooth(raw.ys), 1)]
    lines = [*steps, *([_series(val, "loss", "val", 2)] if _has(val, "loss") else [])]
    last = ", ".join(f"{line.name} {line.ys[-1]:.3f}" for line in lines[1:])
    limits = (0.0, max(value for line in lines for value in line.ys) or 1.0)
    chart = line_chart(
        lines, label=f"Loss at the end: {last}", x_title="step", tell=lambda value: f"{value:.3g}", y_limits=limits
    )
    return Curve("Loss", chart, [(line.colour, line.name) for line in lines[1:]])


def _smooth(values: Sequence[float]) -> list[float]:
    """Return a running mean over a twentieth of the steps."""
    width = max(1, len(values) // 20)
    sums = np.cumsum([0.0, *values])
    starts = np.maximum(0, np.arange(len(values)) - width + 1)
    return [float(value) for value in (sums[1:] - sums[starts]) / (np.arange(len(values)) + 1 - starts)]


def _series(rows: Sequence[Mapping[str, Any]], key: str, name: str, colour: int) -> Series:
    found = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = zip(*found, strict=True)
    return Series(name, steps, values, colour, has_dots=rows[0]["split"] == "val")


def _has(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(key in row for row in rows)


def _shares(values: Sequence[float]) -> tuple[float, float]:
    """Return limits for shares: round tenths around them, inside [0, 1]."""
    low, high = np.floor(10 * min(values)) / 10, np.ceil(10 * max(values)) / 10
    return (float(low), float(high)) if low < high else (max(0.0, float(low) - 0.1), min(1.0, float(low) + 0.1))


def cost_of(run: RunFolder) -> Cost:
    """Return what the run took, as far as it was timed."""
    parts = [(str(row["part"]), float(row["seconds"])) for row in run.timings if "part" in row]
    took = run.plan.get("took") or {}
    if took:  # a run under a budget: its rungs
        parts = [(f"rung {name}", float(value)) for name, value in took.items()]
    steps = [row for row in run.timings if "step" in row and "seconds" in row]
    total = sum(value for _, value in parts) if parts else None
    energy, no_energy = _energy_of(run)
    if not steps:
        return Cost(total, None, None, None, parts, energy, no_energy)
    spent = sum(row["seconds"] for row in steps)
    peaks = [row["peak_memory_bytes"] for row in steps if row.get("peak_memory_bytes")]
    return Cost(
        seconds=total if total is not None else spent,
        images_per_second=float(np.median([row["images_per_second"] for row in steps])),
        data_wait=sum(row["data_wait_seconds"] for row in steps) / spent if spent else None,
        peak_memory_bytes=max(peaks, default=None),
        parts=parts,
        energy=energy,
        no_energy=no_energy,
    )


def _energy_of(run: RunFolder) -> tuple[list[tuple[str, float]], list[tuple[str, str]]]:
    """Return the joules of what has a counter, and why the others have none; under a budget of the rung that won."""
    known, unknown = [], []
    where = f" (rung {run.metrics['best_rung']})" if "best_rung" in run.metrics else ""
    for key, name in (("processors_joules", "processors"), ("gpu_joules", "GPU")):
        joules = [row[key] for row in run.timings if key in row]
        reason = next((row[f"no_{key}"] for row in run.timings if f"no_{key}" in row), None)
        known += [(name + where, float(sum(joules)))] if joules else []
        unknown += [(name, str(reason))] if reason is not None else []
    return known, unknown
