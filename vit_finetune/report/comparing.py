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
from vit_finetune.report.measured import Figure, figures_of
from vit_finetune.report.run_folder import PREDICTIONS, RunFolder, read_run
from vit_finetune.report.scored import Scored, read_scored

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
        accuracy: on those.
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
        only_baseline: pictures that the first alone has right.
        only_this: pictures that this run alone has right.
        difference: of the accuracies, this one minus the first.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: of McNemar's exact test.
        classes: (class, difference of the recall, pictures) where it differs, the largest first.
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

    @property
    def words(self) -> str:
        """The difference in a sentence."""
        points = f"{100 * abs(self.difference):.1f} points"
        if self.p_value >= 0.05:
            return f"{self.name} and {self.baseline} cannot be told apart on these pictures (p = {self.p_value:.2g})."
        than = "better" if self.difference > 0 else "worse"
        return f"{self.name} is {than} than {self.baseline} by {points} (p = {self.p_value:.2g})."


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
        runs: in the order they were given; the first is the baseline.
        differences: of each other run against the first.
        settings: (section.key, its value in each run) where they differ.
        num_common: pictures that all of them scored.
    """

    runs: Sequence[Compared]
    differences: Sequence[Difference]
    settings: Sequence[tuple[str, Sequence[str]]]
    num_common: int

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "num_common": self.num_common,
            "runs": [asdict(run) for run in self.runs],
            "differences": [asdict(difference) for difference in self.differences],
            "settings": [{"key": key, "values": list(values)} for key, values in self.settings],
        }


def compare_runs(paths: Sequence[str | Path]) -> Comparison:
    """Compare finished runs of one class a picture.

    Args:
        paths: folders of at least two runs; the first is the baseline.

    Returns:
        Figures, paired differences and settings.

    Raises:
        RequestError: a folder is no finished run with predictions, or they have no picture in common.
    """
    if len(paths) < 2:
        raise RequestError(f"a comparison needs at least two runs; got {len(paths)}")
    runs = [read_run(path) for path in paths]
    scored = [_scored(run) for run in runs]
    names = _short_names(runs)
    places = _common([_keys(run, part) for run, part in zip(runs, scored, strict=True)])
    if not len(places[0]):
        raise RequestError(
            f"{names[0]} and the others scored no picture in common; train them on the same data and splits"
        )
    right = [part.correct[rows] for part, rows in zip(scored, places, strict=True)]
    compared = [
        Compared(
            name=name,
            path=str(run.path),
            figures=figures_of(run, part),
            num_samples=len(part),
            split=run.split,
            num_common=len(rows),
            accuracy=float(hits.mean()),
        )
        for name, run, part, rows, hits in zip(names, runs, scored, places, right, strict=True)
    ]
    labels = np.array(scored[0].class_names, dtype=object)[scored[0].labels[places[0]]]
    differences = [
        _difference(name, names[0], hits, right[0], labels) for name, hits in zip(names[1:], right[1:], strict=True)
    ]
    return Comparison(compared, differences, settings_that_differ([run.config for run in runs]), len(places[0]))


def _scored(run: RunFolder) -> Scored:
    """Return the predictions of a run."""
    if run.is_multilabel:
        raise RequestError(f"{run.path} is for several classes a picture; only runs of one class each are compared")
    if not (run.is_done and (run.path / PREDICTIONS).is_file()):
        raise RequestError(f"{run.path} has no {PREDICTIONS}; finish it, with a val or test split")
    return read_scored(run.path / PREDICTIONS, run.class_names)


def _keys(run: RunFolder, scored: Scored) -> list[tuple[str, str, int]]:
    """Return what each picture is known by: its bytes or name, its class, and which of equal ones it is."""
    known: dict[int, str] = {}
    if (run.path / MANIFEST).is_file():
        table = pq.read_table(run.path / MANIFEST, columns=["split", "index", "sha256"]).to_pydict()
        columns = zip(table["split"], table["index"], table["sha256"], strict=True)
        known = {index: digest for split, index, digest in columns if split == run.split}
    seen: dict[tuple[str, str], int] = {}
    keys = []
    for index, path, label in zip(scored.indices.tolist(), scored.paths, scored.labels.tolist(), strict=True):
        what = known.get(index) or str(path), scored.class_names[label]
        seen[what] = seen.get(what, -1) + 1
        keys.append((*what, seen[what]))
    return keys


def _common(keys: Sequence[Sequence[tuple[str, str, int]]]) -> list[NDArray[np.int64]]:
    """Return for each run the rows of the pictures that all of them have, in one order."""
    rows = [{key: row for row, key in enumerate(of_run)} for of_run in keys]
    shared = [key for key in keys[0] if all(key in places for places in rows)]
    return [np.array([places[key] for key in shared], dtype=np.int64) for places in rows]


def _difference(
    name: str, baseline: str, hits: NDArray[np.bool_], first: NDArray[np.bool_], labels: NDArray[np.object_]
) -> Difference:
    """Return one run against the first one."""
    only_first, only_this = int((first & ~hits).sum()), int((hits & ~first).sum())
    value, low, high = paired_difference(only_first, only_this, len(hits))
    classes = []
    for label in sorted(set(labels[hits != first])):
        rows = labels == label
        classes.append((str(label), float(hits[rows].mean() - first[rows].mean()), int(rows.sum())))
    classes = sorted((row for row in classes if row[1]), key=lambda row: -abs(row[1]))
    return Difference(name, baseline, only_first, only_this, value, low, high, mcnemar(only_first, only_this), classes)


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
