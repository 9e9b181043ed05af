"""Pictures of several classes, label by label: what another threshold would find and miss, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vit_finetune.evaluation.multilabel import average_precision
from vit_finetune.pages.charts import Series, line_chart
from vit_finetune.report.attention import Looking
from vit_finetune.report.curves import Curve
from vit_finetune.report.gallery import Gallery, Shown, first_rows, missing_note, thumbnails_of
from vit_finetune.report.measured import thresholds_of
from vit_finetune.report.pictures import Pictures
from vit_finetune.report.run_folder import RunFolder
from vit_finetune.report.scored import ScoredSets

_GRID = tuple(step / 100 for step in range(101))  # thresholds that are tried
_MOST_LABELS = 6  # with a chart and pictures of their own
_EXAMPLES = 2  # pictures of each kind of mistake of a label
_LEGEND = ((1, "precision"), (2, "recall"), (3, "F1"))


@dataclass(frozen=True)
class LabelChoice:
    """Which pictures of a label will be shown, as rows of the scored ones.

    Attributes:
        label: its number.
        wrong: pictures that are said to have it and do not, the most confident first.
        missed: pictures that have it and are not said to, the least probable first.
    """

    label: int
    wrong: Sequence[int]
    missed: Sequence[int]

    @property
    def rows(self) -> set[int]:
        """All of them."""
        return {*self.wrong, *self.missed}


@dataclass(frozen=True)
class LabelCurves:
    """Charts of thresholds.

    Attributes:
        overall: of all decisions together.
        labels: of the labels that are ranked worst.
    """

    overall: Curve
    labels: Sequence[Curve]


def label_curves(run: RunFolder, scored: ScoredSets) -> LabelCurves:
    """Return precision, recall and F1 over thresholds, for all labels together and for those that are ranked worst."""
    chosen = thresholds_of(run)
    labels = []
    for figure, k in worst_labels(scored):
        counts = _counts(scored.labels[:, k], scored.probabilities[:, k])
        title = f"{scored.class_names[k]}: average precision {100 * figure:.1f} %"
        labels.append(Curve(title, _chart(counts, float(chosen[k]), scored.class_names[k]), _LEGEND))
    overall = _chart(_counts(scored.labels.ravel(), scored.probabilities.ravel()), None, "all labels together")
    return LabelCurves(Curve("All labels together, at one threshold", overall, _LEGEND), labels)


def worst_labels(scored: ScoredSets) -> list[tuple[float, int]]:
    """Return (average precision, label) of the labels that are ranked worst, the worst first."""
    ranked = [
        (average_precision(scored.labels[:, k], scored.probabilities[:, k]), k)
        for k in np.flatnonzero(scored.labels.any(axis=0)).tolist()
    ]
    return sorted(ranked)[:_MOST_LABELS]


def choose_of_labels(run: RunFolder, scored: ScoredSets) -> list[LabelChoice]:
    """Return which pictures to show of the labels that are ranked worst; a label without a mistake is left out."""
    cuts = thresholds_of(run)
    choices = []
    for _, k in worst_labels(scored):
        scores, has = scored.probabilities[:, k].astype(np.float64), scored.labels[:, k] == 1
        said = scores >= cuts[k]
        wrong, missed = np.flatnonzero(said & ~has), np.flatnonzero(has & ~said)
        if len(wrong) or len(missed):
            choices.append(
                LabelChoice(
                    k, first_rows(wrong, -scores[wrong], _EXAMPLES), first_rows(missed, scores[missed], _EXAMPLES)
                )
            )
    return choices


def label_gallery(scored: ScoredSets, choices: Sequence[LabelChoice], pictures: Pictures, looking: Looking) -> Gallery:
    """Return the pictures that were chosen.

    Args:
        scored: what the model said.
        choices: of `choose_of_labels`.
        pictures: of the split.
        looking: makes the overlays.
    """
    rows = {row for choice in choices for row in choice.rows}
    seen = thumbnails_of(scored, rows, pictures, looking, looked_at=rows)

    def shown(k: int, row: int) -> Shown:
        own = [scored.class_names[place] for place in np.flatnonzero(scored.labels[row])]
        sure = float(scored.probabilities[row, k])
        return Shown.of(scored, row, seen[row], label=", ".join(own), guess=scored.class_names[k], confidence=sure)

    labels = [
        (
            scored.class_names[choice.label],
            [shown(choice.label, row) for row in choice.wrong],
            [shown(choice.label, row) for row in choice.missed],
        )
        for choice in choices
    ]
    return Gallery(labels=labels, note=missing_note(pictures, len(rows)), about_attention=looking.told)


def _counts(labels: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> tuple[NDArray[np.int64], ...]:
    """Return for each threshold how many decisions are right, and how many there are; and how many there should be."""
    places = np.searchsorted(_GRID, probabilities.astype(np.float64), side="right") - 1  # the last one not above it
    right = np.bincount(places[labels == 1], minlength=len(_GRID))
    said = np.bincount(places, minlength=len(_GRID))
    return right[::-1].cumsum()[::-1], said[::-1].cumsum()[::-1], np.array(int(labels.sum()))


def _chart(counts: tuple[NDArray[np.int64], ...], threshold: float | None, name: str) -> Markup:
    """Return the chart of one label, with the chosen threshold as a line."""
    right, said, have = counts
    some = said > 0
    x = np.asarray(_GRID)[some]
    precision = right[some] / said[some]
    recall = right[some] / max(1, int(have))
    f1 = 2 * right[some] / (said[some] + have)
    lines = [
        Series(name, x.tolist(), values.tolist(), colour)
        for (colour, name), values in zip(_LEGEND, (precision, recall, f1), strict=True)
    ]
    best = int(f1.argmax())
    label = f"{name}: F1 is largest, {f1[best]:.2f}, at a threshold of {x[best]:.2f}"
    if threshold is not None:
        lines.append(Series("threshold", (threshold, threshold), (0.0, 1.0), 4, is_faint=True))
        label += f"; {threshold:.2f} is used"
    limits = (0.0, 1.0)
    return line_chart(
        lines,
        label=label,
        x_title="threshold",
        tell=lambda value: f"{100 * value:.0f} %",
        y_limits=limits,
        x_limits=limits,
    )
