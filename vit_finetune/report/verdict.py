"""The whole run in two sentences: how good the model is, and what to know before trusting that."""

from __future__ import annotations

from collections.abc import Sequence

from vit_finetune.pages.rendering import count, percent
from vit_finetune.report.calibration import Calibration
from vit_finetune.report.data_card import DataCard
from vit_finetune.report.measured import ClassRow, Figure
from vit_finetune.report.run_folder import RunFolder

_FEW = 300  # pictures; below, an interval of accuracy is several points wide


def verdict_of(
    run: RunFolder,
    figures: Sequence[Figure],
    rows: Sequence[ClassRow],
    *,
    card: DataCard | None,
    calibration: Calibration | None,
) -> tuple[str, str]:
    """Return the two sentences.

    Args:
        run: what it saved.
        figures: of the scored split; empty where there is none.
        rows: a row for each class.
        card: the data, if known.
        calibration: of one class a picture, if the predictions are there.
    """
    if not run.is_done:
        step, total = (run.steps[-1]["step"] if run.steps else 0), run.plan.get("num_steps")
        where = f"step {count(step)} of {count(total)}" if total else "its end"
        return (
            f"This run has not ended: it got to {where}." if total else "This run has not ended.",
            f"Go on with it by: vit-finetune train {run.path} --resume.",
        )
    if not figures:
        return (
            "Nobody knows how good this model is: the run had no pictures to score it on.",
            "Give it a val split, or score it on other pictures by: vit-finetune evaluate.",
        )
    return _how_good(run, figures, rows), _what_to_know(run, rows, card=card, calibration=calibration)


def _how_good(run: RunFolder, figures: Sequence[Figure], rows: Sequence[ClassRow]) -> str:
    """Return the figure with its interval, and what a constant answer would have."""
    figure = next(figure for figure in figures if figure.key in ("accuracy", "mean_average_precision"))
    total = int(run.metrics["num_samples"])
    among = f"{count(total)} {run.split} picture{'s' if total != 1 else ''}"
    if run.is_multilabel:
        exact = next(figure for figure in figures if figure.key == "accuracy")
        return (
            f"On {among} the mean average precision over the labels is {percent(figure.value)}, and "
            f"{percent(exact.value)} of the pictures ({_interval(exact)}) get exactly their labels."
        )
    most = max(rows, key=lambda row: row.num_samples)
    constant = f"always answering “{most.name}” would be right for {percent(most.num_samples / total)}"
    return f"The model names the right class for {percent(figure.value)} of {among} ({_interval(figure)}); {constant}."


def _interval(figure: Figure) -> str:
    return f"95 % interval {100 * (figure.low or 0):.1f} to {percent(figure.high)}"


def _what_to_know(
    run: RunFolder, rows: Sequence[ClassRow], *, card: DataCard | None, calibration: Calibration | None
) -> str:
    """Return the second sentence: the weakest class, and the most important reason for doubt."""
    parts = [*_weakest(run, rows), *_doubts(run, card)[:1], *_confidence(calibration)]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def _weakest(run: RunFolder, rows: Sequence[ClassRow]) -> list[str]:
    """Return which class is recognised least."""
    if run.is_multilabel:
        ranked = [row for row in rows if row.average_precision is not None]
        if not ranked:
            return ["none of the labels occurs in these pictures"]
        worst = min(ranked, key=lambda row: row.average_precision or 0)
        return [f"“{worst.name}” is ranked worst (average precision {percent(worst.average_precision)})"]
    occurring = [row for row in rows if row.recall is not None]
    worst = min(occurring, key=lambda row: (row.recall, -row.num_samples))
    if worst.recall == 1:
        return ["no picture was mistaken"]
    other = "" if worst.taken_for is None else f" and most often taken for “{worst.taken_for[0]}”"
    return [f"“{worst.name}” is recognised least ({percent(worst.recall)} of {count(worst.num_samples)}){other}"]


def _doubts(run: RunFolder, card: DataCard | None) -> list[str]:
    """Return why the figures may flatter, the gravest reason first."""
    doubts = []
    if card is not None and card.num_shared:
        doubts.append(f"{count(card.num_shared)} held-out pictures are also in train, which flatters the figures")
    if run.split == "val":
        doubts.append("the figures flatter a little, because the same pictures chose the checkpoint")
    if run.metrics["num_samples"] < _FEW:
        doubts.append("so few pictures leave a wide interval")
    return doubts


def _confidence(calibration: Calibration | None) -> list[str]:
    """Return whether probabilities can be believed."""
    if calibration is None:
        return []
    gap = calibration.overconfidence
    if abs(gap) < 0.01 and calibration.ece < 0.02:
        return ["its probabilities can be taken at their word"]
    word = "surer of itself than it should be" if gap > 0 else "less sure of itself than it could be"
    mended = calibration.ece_scaled is not None and calibration.ece_scaled < calibration.ece
    cure = " (the fitted temperature brings that down)" if mended else ""
    return [f"the model is on average {100 * abs(gap):.1f} points {word}{cure}"]
