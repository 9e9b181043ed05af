"""The readouts by name: what is tried for each, how a try is scored on held-out folds, and the final fit.

Scaling is taken from all training pictures (no label is used); principal components are refitted without each held-out
fold, since whitened ones would fit its pictures too. The choice among what was tried is in trials.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models import Readout
from vit_finetune.models.features import Input
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.knn_readout import TEMPERATURE, fit_knn
from vit_finetune.training.linear_readout import Landmarks, LinearFit, Space, Spectrum, fit_linear
from vit_finetune.training.sgd_readout import Probe, Recipe, attentive_probes, grid_of_heads, train_probes
from vit_finetune.training.solvers import fit_logistic, fit_ridge
from vit_finetune.training.trials import Held, Trial

READOUTS = ("knn", "logistic", "multilayer", "spatial", "sgd_grid", "attentive")
NEIGHBOURS = (5, 10, 20, 100, 200)
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SPATIAL_DIMS = 512
_SEARCH_ITER = 30  # of L-BFGS per penalty: enough to rank tries; the final fit takes up to 200


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
        trials = [trial for space in spaces_of(name, table) for trial in search_linear(name, marks, folds, space)]
    seconds = (time.perf_counter() - started) / len(trials)
    return [replace(trial, seconds=seconds) for trial in trials]


def spaces_of(name: str, table: FeatureTable) -> list[Space]:
    """Return the features that a linear readout is tried on.

    Args:
        name: logistic (the embedding), multilayer (class, mean and extreme patch tokens of all chosen blocks) or
            spatial (the grid of the earlier half of the chosen blocks, and of the later half).
        table: the training pictures.
    """
    if name == "logistic":
        return [Space((("embedding", -1),), standardize=True)]
    layers = table.layers
    if name == "multilayer":
        kinds = (*(("cls",) if "cls" in table.views[0] else ()), "avg", "max", "min")
        return [Space(tuple((kind, layer) for kind in kinds for layer in layers), standardize=True)]
    half = (len(layers) + 1) // 2
    chosen = dict.fromkeys((layers[:half], layers[-half:]))
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


def search_linear(name: str, marks: Landmarks, folds: np.ndarray, space: Space) -> Iterator[Trial]:
    """Score solvers and penalties on one space; inner products are computed once.

    Args:
        name: a linear readout.
        marks: of the training pictures: those that are looked at.
        folds: the fold of each picture [N].
        space: the features.

    Returns:
        Each try.
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
        yield Trial.of(name, settings, scaled_sums, partial(fit_linear, marks, space, scaled), space)


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
        yield Trial.of("knn", settings, sums, partial(fit_knn, table, everything, k=k))


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
        yield Trial.of(name, settings, sums, partial(_train_one, table, probe, recipe))


def _train_one(table: FeatureTable, probe: Probe, recipe: Recipe) -> Readout:
    return train_probes(table, [probe], recipe, np.arange(len(table)))[0]


def _in_words(inputs: Sequence[Input]) -> str:
    """Return features as people call them, such as `cls of blocks 10, 11 + avg of blocks 11`."""
    kinds = dict.fromkeys(kind for kind, _ in inputs)
    parts = [
        kind if kind == "embedding" else f"{kind} of blocks {', '.join(str(layer) for k, layer in inputs if k == kind)}"
        for kind in kinds
    ]
    return " + ".join(parts)
