"""Several runs beside each other: figures, paired differences on the pictures that all of them scored, settings.

A picture is the same where its bytes are, so runs may have read their data from different places and in another order;
where bytes are not known, the name decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.layout import MANIFEST
from vit_finetune.evaluation.intervals import mcnemar, paired_difference
from vit_finetune.report.measured import Figure
from vit_finetune.report.run_folder import RunFolder, read_run
from vit_finetune.report.sides import Change, SeveralClasses, Side, open_sides

_WHERE = ("run.dir", "run.check", "run.report")  # says where and how a run is told, not what it is


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        name: short and different from the others'.
        path: of its folder.
        figures: with intervals, on all pictures that this run scored.
        num_samples: those pictures.
        split: that they are of.
        num_common: pictures that all runs scored.
        accuracy: on those; of several classes a picture the share with exactly their classes.
    """

    name: str
    path: str
    figures: Sequence[Figure]
    num_samples: int
    split: str
    num_common: int
    accuracy: float


@dataclass(frozen=True)
class Difference:
    """A run against the first one, on the pictures that all runs scored.

    Attributes:
        name: of the run.
        baseline: of the first.
        only_baseline: pictures that the first alone has right: all of their classes, where they may have several.
        only_this: pictures that this run alone has right.
        difference: of the accuracies, this one minus the first.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: of McNemar's exact test.
        classes: (class, difference of its figure, pictures) where it differs, the largest first.
        figures: of several classes a picture, the differences of ranking and F1.
    """

    name: str
    baseline: str
    only_baseline: int
    only_this: int
    difference: float
    low: float
    high: float
    p_value: float
    classes: Sequence[tuple[str, float, int]]
    figures: Sequence[Change] = ()

    @property
    def words(self) -> str:
        """The difference in a sentence: of several classes a picture the ranking's, else the accuracy's."""
        change = next(iter(self.figures), None)
        if change is None:
            value, is_clear, why, what = self.difference, self.p_value < 0.05, f"p = {self.p_value:.2g}", ""
        else:
            value, is_clear, what = change.difference, not change.low <= 0 <= change.high, f" of {change.name}"
            why = f"95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f} points{'' if is_clear else what}"
        if not is_clear:
            return f"{self.name} and {self.baseline} cannot be told apart on these pictures ({why})."
        than = "better" if value > 0 else "worse"
        return f"{self.name} is {than} than {self.baseline} by {100 * abs(value):.1f} points{what} ({why})."


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
        runs: in the order they were given; the first is the baseline.
        differences: of each other run against the first.
        settings: (section.key, its value in each run) where they differ.
        num_common: pictures that all of them scored.
        class_figure: what the classes of a difference are compared by.
    """

    runs: Sequence[Compared]
    differences: Sequence[Difference]
    settings: Sequence[tuple[str, Sequence[str]]]
    num_common: int
    class_figure: str

    @property
    def is_multilabel(self) -> bool:
        """Whether pictures have any number of classes."""
        return self.class_figure == SeveralClasses.class_figure

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "num_common": self.num_common,
            "class_figure": self.class_figure,
            "runs": [asdict(run) for run in self.runs],
            "differences": [asdict(difference) for difference in self.differences],
            "settings": [{"key": key, "values": list(values)} for key, values in self.settings],
        }


def compare_runs(paths: Sequence[str | Path]) -> Comparison:
    """Compare finished runs, all of one class a picture or all of several.

    Args:
        paths: folders of at least two runs; the first is the baseline.

    Returns:
        Figures, paired differences and settings.

    Raises:
        RequestError: a folder is no finished run with predictions, they have no picture in common, or not one kind of
            classes.
    """
    if len(paths) < 2:
        raise RequestError(f"a comparison needs at least two runs; got {len(paths)}")
    runs = [read_run(path) for path in paths]
    sides, names = open_sides(runs), _short_names(runs)
    places = _common([_keys(side) for side in sides])
    if not len(places[0]):
        raise RequestError(
            f"{names[0]} and the others scored no picture in common; train them on the same data and splits"
        )
    common = [side.at(rows) for side, rows in zip(sides, places, strict=True)]
    compared = [
        Compared(
            name=name,
            path=str(side.run.path),
            figures=side.figures,
            num_samples=len(side.scored),
            split=side.run.split,
            num_common=len(shared.scored),
            accuracy=float(shared.right.mean()),
        )
        for name, side, shared in zip(names, sides, common, strict=True)
    ]
    differences = [
        _difference(name, names[0], side, common[0]) for name, side in zip(names[1:], common[1:], strict=True)
    ]
    settings = settings_that_differ([run.config for run in runs])
    return Comparison(compared, differences, settings, len(places[0]), sides[0].class_figure)


_Key = tuple[str, tuple[str, ...], int]


def _keys(side: Side) -> list[_Key]:
    """Return what each picture is known by: its bytes or name, its classes, and which of equal ones it is."""
    run, scored = side.run, side.scored
    known: dict[int, str] = {}
    if (run.path / MANIFEST).is_file():
        table = pq.read_table(run.path / MANIFEST, columns=["split", "index", "sha256"]).to_pydict()
        columns = zip(table["split"], table["index"], table["sha256"], strict=True)
        known = {index: digest for split, index, digest in columns if split == run.split}
    seen: dict[tuple[str, tuple[str, ...]], int] = {}
    keys = []
    for index, path, answer in zip(scored.indices.tolist(), scored.paths, side.answers, strict=True):
        what = known.get(index) or str(path), answer
        seen[what] = seen.get(what, -1) + 1
        keys.append((*what, seen[what]))
    return keys


def _common(keys: Sequence[Sequence[_Key]]) -> list[NDArray[np.int64]]:
    """Return for each run the rows of the pictures that all of them have, in one order."""
    rows = [{key: row for row, key in enumerate(of_run)} for of_run in keys]
    shared = [key for key in keys[0] if all(key in places for places in rows)]
    return [np.array([places[key] for key in shared], dtype=np.int64) for places in rows]


def _difference(name: str, baseline: str, side: Side, first: Side) -> Difference:
    """Return one run against the first one, on the same pictures in one order."""
    hits, theirs = side.right, first.right
    only_first, only_this = int((theirs & ~hits).sum()), int((hits & ~theirs).sum())
    value, low, high = paired_difference(only_first, only_this, len(hits))
    return Difference(
        name=name,
        baseline=baseline,
        only_baseline=only_first,
        only_this=only_this,
        difference=value,
        low=low,
        high=high,
        p_value=mcnemar(only_first, only_this),
        classes=sorted((row for row in side.classes_against(first) if row[1]), key=lambda row: -abs(row[1])),
        figures=side.figures_against(first),
    )


def _short_names(runs: Sequence[RunFolder]) -> list[str]:
    """Return the last parts of the paths, as many as tell the runs apart."""
    parts = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise RequestError(f"{runs[0].path} is given twice; compare different runs")


def settings_that_differ(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return (section.key, value in each) of every setting that is not the same in all.

    Args:
        configs: as plain values.
    """
    flat = [_flat(config) for config in configs]
    keys = sorted({key for values in flat for key in values})
    rows = [(key, [str(values.get(key, "-")) for values in flat]) for key in keys if not key.startswith(_WHERE)]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by section.key."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows |= _flat(value, f"{prefix}{key}.")
        else:
            rows[prefix + str(key)] = value
    return rows
