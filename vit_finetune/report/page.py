"""The report of a run: everything above put together, rendered and written as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_text
from vit_finetune.pages.rendering import render
from vit_finetune.report.attention import Looking
from vit_finetune.report.calibration import calibration_of, temperature_of
from vit_finetune.report.confusion import confusion_of
from vit_finetune.report.curves import cost_of, curves_of
from vit_finetune.report.data_card import DataCard, read_card
from vit_finetune.report.gallery import choose, gallery_of
from vit_finetune.report.labels import choose_of_labels, label_curves, label_gallery
from vit_finetune.report.measured import ClassRow, class_rows, figures_of, multilabel_figures, multilabel_rows
from vit_finetune.report.pictures import open_pictures
from vit_finetune.report.provenance import (
    command_of,
    config_text,
    environment_of,
    hashes_of,
    plan_of,
    weights_of,
)
from vit_finetune.report.run_folder import PREDICTIONS, RunFolder, read_run
from vit_finetune.report.scored import read_scored, read_scored_sets
from vit_finetune.report.verdict import verdict_of

if TYPE_CHECKING:
    from vit_finetune.data import Splits

REPORT_FILE = "report.html"
_MOST_CLASSES = 1000  # rows of the table of classes


def write_report(
    run_dir: str | Path,
    output: str | Path | None = None,
    *,
    pictures: str | Path | None = None,
    splits: Splits | None = None,
    attention: bool = True,
) -> Path:
    """Write what a run saved as one page that needs nothing else: no network, no other file.

    Args:
        run_dir: the run's folder; one that has not ended gives a page of what there is.
        output: the file; None takes report.html in the run's folder. An older page is replaced.
        pictures: a folder to look for the pictures in, where they have moved; None looks where the run saw them.
        splits: the run's pictures, where they are open already.
        attention: draw what the model looked at, which loads it.

    Returns:
        The file.

    Raises:
        RequestError: it is no run's folder, or a file of it is damaged; the message names it.
    """
    run = read_run(run_dir)
    target = run.path / REPORT_FILE if output is None else Path(output)
    if target.is_dir():
        raise RequestError(f"{target} is a folder; give the name of a file")
    root = None if pictures is None else Path(pictures)
    if root is not None and not root.is_dir():
        raise RequestError(f"{root} is no folder of pictures")
    write_text(target, page_of(run, splits=splits, root=root, attention=attention))
    return target


def page_of(run: RunFolder, *, splits: Splits | None, root: Path | None, attention: bool) -> str:
    """Return the report of a run as HTML.

    Args:
        run: what it saved.
        splits: its pictures, where they are open.
        root: where else to look for them.
        attention: draw what the model looked at.
    """
    card = read_card(run)
    told_of = _several_classes if run.is_multilabel else _one_class
    values = told_of(run, card, splits, root, attention)
    rows = values["rows"]
    verdict = verdict_of(run, values["figures"], rows, card=card, calibration=values["calibration"])
    shown = _worst_first(rows, run)[:_MOST_CLASSES] if len(rows) > _MOST_CLASSES else rows
    about = {
        "run": run,
        "title": run.name,
        "verdict": verdict,
        "card": card,
        "balance": _balance(card),
        "shown_rows": shown,
        "curves": curves_of(run),
        "cost": cost_of(run),
        "weights": weights_of(run),
        "command": command_of(run),
        "hashes": hashes_of(run, card),
        "plan": plan_of(run),
        "environment": environment_of(run),
        "config": config_text(run),
    }
    return render("report.html", {**about, **values})


def _one_class(
    run: RunFolder, card: DataCard | None, splits: Splits | None, root: Path | None, attention: bool
) -> dict[str, Any]:
    """Return what is told of one class a picture; most of it is None where the predictions are gone."""
    path = run.path / PREDICTIONS
    empty: dict[str, Any] = dict.fromkeys(("confusion", "gallery", "calibration", "labels"))
    if not (run.figures and path.is_file()):
        return {**empty, "figures": figures_of(run, None), "rows": []}
    scored = read_scored(path, run.class_names, temperature=temperature_of(run))
    choice = choose(scored)
    places = [int(scored.indices[row]) for row in choice.rows]
    looking = Looking(run, is_wanted=attention)
    return {
        "figures": figures_of(run, scored),
        "rows": class_rows(run.class_names, scored, num_train=_num_train(card, run)),
        "confusion": confusion_of(scored),
        "calibration": calibration_of(run, scored),
        "gallery": gallery_of(scored, choice, open_pictures(run, places, splits=splits, root=root), looking),
        "labels": None,
    }


def _several_classes(
    run: RunFolder, card: DataCard | None, splits: Splits | None, root: Path | None, attention: bool
) -> dict[str, Any]:
    """Return what is told of several classes a picture; less where the predictions are gone."""
    path = run.path / PREDICTIONS
    scored = read_scored_sets(path, run.class_names) if path.is_file() else None
    told: dict[str, Any] = {
        **dict.fromkeys(("confusion", "gallery", "calibration", "labels")),
        "figures": multilabel_figures(run, scored),
        "rows": multilabel_rows(run, scored, num_train=_num_train(card, run)),
    }
    if scored is None:
        return told
    choices = choose_of_labels(run, scored)
    places = [int(scored.indices[row]) for choice in choices for row in choice.rows]
    pictures = open_pictures(run, places, splits=splits, root=root)
    gallery = label_gallery(scored, choices, pictures, Looking(run, is_wanted=attention))
    return {**told, "labels": label_curves(run, scored), "gallery": gallery}


def _num_train(card: DataCard | None, run: RunFolder) -> Sequence[int] | None:
    """Return the training pictures of each class, in the order of the head."""
    train = None if card is None else card.of("train")
    if card is None or train is None:
        return None
    known = dict(zip(card.class_names, train.counts, strict=True))
    return [known.get(name, 0) for name in run.class_names]


def _worst_first(rows: Sequence[ClassRow], run: RunFolder) -> list[ClassRow]:
    """Return the rows of classes, those that are recognised least first."""
    key = "average_precision" if run.is_multilabel else "f1"
    return sorted(rows, key=lambda row: (getattr(row, key) is None, getattr(row, key) or 0.0))


def _balance(card: DataCard | None) -> list[tuple[str, int]]:
    """Return the training pictures of each class, the most frequent first; empty where they are not known."""
    train = None if card is None else card.of("train")
    if card is None or train is None:
        return []
    return sorted(zip(card.class_names, train.counts, strict=True), key=lambda item: -item[1])
