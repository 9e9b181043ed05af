"""The readouts by name: what is tried for each, how a try is scored on held-out folds, and the final fit.

A try is chosen by folds of the training pictures, nothing else is looked at: of the tries whose accuracy is within one
standard error of the best, which is as far as that many pictures tell them apart, the one of the smallest
cross-entropy, which sees finer. Scaling is taken from all training pictures (no label is used);
principal components are refitted without each held-out fold, since whitened ones would fit its pictures too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models import LinearReadout, Readout
from vit_finetune.models.features import Input
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.knn_readout import TEMPERATURE, fit_knn
from vit_finetune.training.linear_readout import (
    Landmarks,
    LinearFit,
    Space,
    Spectrum,
    average_linear,
    fit_linear,
)
from vit_finetune.training.sgd_readout import Probe, Recipe, attentive_probes, grid_of_heads, train_probes
from vit_finetune.training.solvers import fit_logistic, fit_ridge, fit_sharpness

READOUTS = ("knn", "logistic", "multilayer", "spatial", "sgd_grid", "attentive")
NEIGHBOURS = (5, 10, 20, 100, 200)
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SPATIAL_DIMS = 512
_SEARCH_ITER = 30  # of L-BFGS per penalty: enough to rank tries; the final fit takes up to 200


@dataclass(frozen=True)
class Trial:
    """One readout with its settings, scored on the folds.

    Attributes:
        readout: its name.
        settings: what was tried, for people.
        accuracy: share of right guesses over all held-out pictures.
        loss: their mean cross-entropy.
        count: held-out pictures.
        seconds: that the tries of this group took, shared out among them.
        fit: fits it on all training pictures.
    """

    readout: str
    settings: Mapping[str, Any]
    accuracy: float
    loss: float
    count: int
    seconds: float
    fit: Callable[[], Readout]

    def to_mapping(self) -> dict[str, Any]:
        """Return what was tried and how it did, as JSON values; the seconds are a clock's and not among them."""
        figures = {"accuracy": self.accuracy, "loss": self.loss}
        return {"readout": self.readout, "settings": dict(self.settings), **figures}


@dataclass
class Held:
    """What one try says about held-out pictures, and what they are."""

    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Keep one fold's held-out pictures."""
        self.logits.append(logits)
        self.labels.append(labels)

    def sharpness(self) -> float:
        """Return the factor by which the logits fit best."""
        return fit_sharpness(torch.cat(self.logits), torch.cat(self.labels))

    def figures(self) -> tuple[float, float]:
        """Return accuracy and mean cross-entropy."""
        logits, labels = torch.cat(self.logits), torch.cat(self.labels)
        right = int((logits.argmax(dim=1) == labels).sum())
        return right / len(labels), float(functional.cross_entropy(logits.double(), labels))


def search_readout(name: str, table: FeatureTable, folds: np.ndarray, *, recipe: Recipe, num_heads: int) -> list[Trial]:
    """Score everything that is tried for one readout.

    Args:
        name: one of `READOUTS`.
        table: the training pictures.
        folds: the fold of each picture [N].
        recipe: how those are trained that take steps.
        num_heads: attention heads of the network.

    Returns:
        The tries, in a fixed order.

    Raises:
        RequestError: there is no readout of that name.
    """
    if name not in READOUTS:
        raise RequestError(f"readout {name!r} is not one of {', '.join(READOUTS)}{did_you_mean(name, READOUTS)}")
    started = time.perf_counter()
    if name == "knn":
        trials = list(_search_knn(table, folds))
    elif name in ("sgd_grid", "attentive"):
        probes = grid_of_heads(table, recipe) if name == "sgd_grid" else attentive_probes(table, num_heads=num_heads)
        trials = list(_search_probes(name, table, folds, probes, recipe))
    else:
        marks = Landmarks(table)
        per_space = [list(search_linear(name, marks, folds, space)) for space in spaces_of(name, table)]
        trials = [trial for trial, _ in itertools.chain(*per_space)]
        trials += [_average(name, per_space)] if len(per_space) > 1 else []
    seconds = (time.perf_counter() - started) / len(trials)
    return [replace(trial, seconds=seconds) for trial in trials]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the try of the smallest loss among those within one standard error of the highest accuracy."""
    top = max(trials, key=lambda trial: trial.accuracy)
    error = (top.accuracy * (1 - top.accuracy) / top.count) ** 0.5
    return min((trial for trial in trials if trial.accuracy >= top.accuracy - error), key=lambda trial: trial.loss)


def spaces_of(name: str, table: FeatureTable) -> list[Space]:
    """Return the features that a linear readout is tried on.

    Args:
        name: logistic (the embedding), multilayer (class and mean patch tokens of all chosen blocks) or spatial (the
            grid of the earlier half of the chosen blocks, of the later half, and of all).
        table: the training pictures.
    """
    if name == "logistic":
        return [Space((("embedding", -1),), standardize=True)]
    layers = table.layers
    if name == "multilayer":
        kinds = ("cls", "avg") if "cls" in table.views[0] else ("avg",)
        return [Space(tuple((kind, layer) for kind in kinds for layer in layers), standardize=True)]
    half = (len(layers) + 1) // 2
    chosen = dict.fromkeys((layers[:half], layers[-half:], layers))
    return [Space(tuple(("grid", layer) for layer in part), standardize=False) for part in chosen]


def _linear_fits(name: str) -> list[LinearFit]:
    """Return what is tried on a space; fits of equal components follow each other, penalties fall."""
    logistic = [LinearFit("logistic", None, 0.0, penalty) for penalty in PENALTIES]
    ridge = [LinearFit("ridge", None, 0.0, penalty) for penalty in PENALTIES]
    if name == "logistic":
        return logistic
    if name == "multilayer":
        return logistic + ridge
    # The components of a grid of tokens are many and uneven: half-whitened for logistic regression, all of them for
    # ridge, which weighs them by itself.
    return ridge + [LinearFit("logistic", SPATIAL_DIMS, 0.5, penalty) for penalty in PENALTIES[1:4]]


def search_linear(name: str, marks: Landmarks, folds: np.ndarray, space: Space) -> Iterator[tuple[Trial, Held]]:
    """Score solvers and penalties on one space; inner products are computed once.

    Args:
        name: a linear readout.
        marks: of the training pictures: those that are looked at.
        folds: the fold of each picture [N].
        space: the features.

    Returns:
        Each try with its logits of held-out pictures, fold by fold in ascending order.
    """
    table, folds = marks.table, folds[marks.rows]
    _, gram = marks.scaled(space)
    held = {how: Held() for how in _linear_fits(name)}
    labels = torch.from_numpy(table.labels[marks.rows])
    for fold in np.unique(folds):
        out = torch.from_numpy(folds == fold)
        inside = (~out).repeat(len(table.views))
        first = torch.cat([out, torch.zeros(len(gram) - len(out), dtype=torch.bool)])
        own, other = gram[inside][:, inside].double(), gram[first][:, inside].double()
        spectrum, targets = Spectrum.of(own), labels.repeat(len(table.views))[inside]
        for key, group in itertools.groupby(held, lambda how: (how.solver, how.dims, how.whiten)):
            solver, dims, whiten = key
            found, tried = spectrum.components(dims=dims, whiten=whiten), list(group)
            x, held_x = found.scores(own).float(), found.scores(other).float()
            penalties, classes = [how.penalty for how in tried], table.num_classes
            if solver == "ridge":
                fits = fit_ridge(x, targets, num_classes=classes, penalties=penalties, orthogonal=True)
            else:
                fits = fit_logistic(x, targets, num_classes=classes, penalties=penalties, max_iter=_SEARCH_ITER)
            for how, (weight, bias) in zip(tried, fits, strict=True):
                held[how].add(held_x @ weight + bias, labels[out])
    for how, sums in held.items():
        scaled = replace(how, sharpness=sums.sharpness()) if how.solver == "ridge" else how
        settings = {"features": _in_words(space.inputs), "solver": how.solver, "penalty": how.penalty}
        settings |= {} if how.dims is None else {"dims": how.dims, "whiten": how.whiten}
        scaled_sums = Held([logits * scaled.sharpness for logits in sums.logits], sums.labels)
        yield _trial(name, settings, scaled_sums, partial(fit_linear, marks, space, scaled)), scaled_sums


def _average(name: str, per_space: Sequence[Sequence[tuple[Trial, Held]]]) -> Trial:
    """Score the mean of the best try of every space, which is one linear layer again.

    Spaces often differ by less than the folds can tell; their mean then errs less than any choice of one.
    """
    best = []
    for tries in per_space:
        chosen = best_of([trial for trial, _ in tries])
        best.append(next(pair for pair in tries if pair[0] is chosen))
    logits = [torch.stack(parts).mean(dim=0) for parts in zip(*(held.logits for _, held in best), strict=True)]
    settings = {"mean_of": [dict(trial.settings) for trial, _ in best]}
    fits = [trial.fit for trial, _ in best]
    return _trial(name, settings, Held(logits, best[0][1].labels), partial(_fit_average, fits))


def _fit_average(fits: Sequence[Callable[[], Readout]]) -> Readout:
    return average_linear([readout for fit in fits if isinstance(readout := fit(), LinearReadout)])


def _search_knn(table: FeatureTable, folds: np.ndarray) -> Iterator[Trial]:
    """Score numbers of neighbours by the cosine of the embedding."""
    everything = np.arange(len(table))
    largest = int((folds[None] != np.unique(folds)[:, None]).sum(axis=1).min()) * len(table.views)
    tried = [k for k in NEIGHBOURS if k <= largest] or [largest]
    held = {k: Held() for k in tried}
    for fold in np.unique(folds):
        x = table.read(("embedding", -1), everything[folds == fold])
        for k in tried:
            logits = fit_knn(table, everything[folds != fold], k=k)(x)
            held[k].add(logits, table.targets(everything[folds == fold]))
    for k, sums in held.items():
        settings = {"features": "embedding", "k": k, "temperature": TEMPERATURE}
        yield _trial("knn", settings, sums, partial(fit_knn, table, everything, k=k))


def logits_of(table: FeatureTable, readout: Readout, rows: np.ndarray, *, chunk: int = 256) -> Tensor:
    """Return logits [n, K] of a readout on cached features of pictures.

    Args:
        table: their features; the first view is read.
        readout: the readout.
        rows: places of the pictures.
        chunk: pictures at once.
    """
    with torch.no_grad():
        parts = [
            readout(torch.cat([table.read(item, rows[start : start + chunk]) for item in readout.inputs], dim=1))
            for start in range(0, len(rows), chunk)
        ]
    return torch.cat(parts)


def _search_probes(
    name: str, table: FeatureTable, folds: np.ndarray, probes: Sequence[Probe], recipe: Recipe
) -> Iterator[Trial]:
    """Score readouts that are trained by steps; all of a fold in one pass."""
    held = [Held() for _ in probes]
    everything = np.arange(len(table))
    for fold in np.unique(folds):
        out = everything[folds == fold]
        for sums, readout in zip(held, train_probes(table, probes, recipe, everything[folds != fold]), strict=True):
            sums.add(logits_of(table, readout, out), table.targets(out))
    for probe, sums in zip(probes, held, strict=True):
        settings = {"features": _in_words(probe.inputs), "lr": probe.lr}
        settings |= {"num_queries": probe.num_queries} if probe.kind == "attentive" else {}
        yield _trial(name, settings, sums, partial(_train_one, table, probe, recipe))


def _train_one(table: FeatureTable, probe: Probe, recipe: Recipe) -> Readout:
    return train_probes(table, [probe], recipe, np.arange(len(table)))[0]


def _trial(name: str, settings: Mapping[str, Any], held: Held, fit: Callable[[], Readout]) -> Trial:
    accuracy, loss = held.figures()
    return Trial(name, settings, accuracy, loss, sum(map(len, held.labels)), 0.0, fit)


def _in_words(inputs: Sequence[Input]) -> str:
    """Return features as people call them, such as `cls of blocks 10, 11 + avg of blocks 11`."""
    kinds = dict.fromkeys(kind for kind, _ in inputs)
    parts = [
        kind if kind == "embedding" else f"{kind} of blocks {', '.join(str(layer) for k, layer in inputs if k == kind)}"
        for kind in kinds
    ]
    return " + ".join(parts)
