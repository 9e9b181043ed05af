"""Logistic regression on frozen features, over a grid of regularisations, in the space of their principal components.

Everything is computed from inner products between pictures, so the width of the features (a grid of tokens has tens of
thousands) costs one matrix product; the fitted layer is written in terms of the features again, as one linear layer
with centring, scaling and projection folded in. Without truncation this is plain L2-regularised logistic regression:
it does not change under a rotation, and the weights lie in the span of the pictures.

Sources: DINOv3's `log_regression.py` (L-BFGS over powers of ten); the dual form of PCA (Schoelkopf et al. 1998).
Legend: n pictures (with views), m of them span the components, F features, d components, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vit_finetune.models import LinearReadout
from vit_finetune.models.features import Input
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.solvers import fit_logistic, fit_ridge, one_thread

MAX_LANDMARKS = 2048  # pictures that span the components: the eigenproblem grows with the cube
_CHUNK = 512  # pictures read at once
_SMALLEST = 1e-6  # eigenvalues below this share of the largest are rounding


@dataclass(frozen=True)
class Space:
    """The features that are read and how they are weighted against each other.

    Attributes:
        inputs: the features, side by side.
        standardize: give each feature the same variance; else each input as a whole.
    """

    inputs: tuple[Input, ...]
    standardize: bool


@dataclass(frozen=True)
class Components:
    """The principal components of the pictures that span them.

    Attributes:
        rows: [m, d], what turns centred inner products with the m pictures into scores.
        mean: [m], mean inner product of each with all of them.
        total: mean of all inner products.
    """

    rows: Tensor
    mean: Tensor
    total: Tensor

    def scores(self, gram: Tensor) -> Tensor:
        """Return scores [n, d] of pictures by their inner products [n, m] with those that span the components."""
        return (gram - gram.mean(dim=1, keepdim=True) - self.mean + self.total) @ self.rows


@dataclass(frozen=True)
class Spectrum:
    """All principal components of pictures, of which `components` takes some.

    Attributes:
        values: [c], squared lengths along each, falling.
        vectors: [m, c].
        mean: see `Components`.
        total: see `Components`.
    """

    values: Tensor
    vectors: Tensor
    mean: Tensor
    total: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Spectrum:
        """Decompose inner products [m, m], not centred."""
        gram = gram.double()
        mean, total = gram.mean(dim=0), gram.mean()
        with one_thread():
            values, vectors = torch.linalg.eigh(gram - mean - gram.mean(dim=1, keepdim=True) + total)
        values, vectors = values.flip(0), vectors.flip(1)
        count = max(1, int((values > _SMALLEST * values[0]).sum()))
        return cls(values[:count].clamp_min(torch.finfo(values.dtype).tiny), vectors[:, :count], mean, total)

    def components(self, *, dims: int | None, whiten: float) -> Components:
        """Return some components, with scores of a mean squared length of 1 over the m pictures.

        Args:
            dims: how many; None for all that are more than rounding.
            whiten: 0 keeps the scores' variances, 1 makes them equal, between is between.
        """
        values, vectors = self.values[:dims], self.vectors[:, :dims]
        spread = values / len(vectors)
        length = (spread ** (1 - whiten)).sum().sqrt()
        return Components(vectors / values.sqrt() * spread ** (-whiten / 2) / length, self.mean, self.total)


@dataclass(frozen=True)
class LinearFit:
    """How a linear readout is fitted.

    Attributes:
        solver: logistic or ridge.
        dims: principal components; None for all.
        whiten: see `Spectrum.components`.
        penalty: see `solvers.py`.
        sharpness: a factor for the logits, which least squares does not scale as probabilities need.
    """

    solver: str
    dims: int | None
    whiten: float
    penalty: float
    sharpness: float = 1.0


class Scaling:
    """What makes features comparable: a factor for each, from the pictures that span the components.

    Args:
        table: the training pictures.
        space: the features.
        rows: places of the pictures.
    """

    def __init__(self, table: FeatureTable, space: Space, rows: np.ndarray) -> None:
        self.factors: list[Tensor] = []
        for item in space.inputs:
            variance = _variance(table, item, rows)
            if space.standardize:
                # A feature that never changes says nothing, and must not become noise.
                factor = torch.where(variance > 0, variance.clamp_min(1e-12).rsqrt(), torch.zeros_like(variance))
                self.factors.append(factor / len(variance) ** 0.5)
            else:
                self.factors.append(variance.sum().clamp_min(1e-12).rsqrt().expand(len(variance)))


def _variance(table: FeatureTable, item: Input, rows: np.ndarray) -> Tensor:
    """Return the variance of each feature, [F]."""
    total = squares = torch.zeros(1, dtype=torch.float64)
    for part in np.array_split(rows, -(-len(rows) // _CHUNK)):
        x = table.read(item, part).double()
        total, squares = total + x.sum(dim=0), squares + x.square().sum(dim=0)
    mean = total / len(rows)
    return (squares / len(rows) - mean.square()).clamp_min(0).float()


def gram_of(table: FeatureTable, space: Space, scaling: Scaling, rows: np.ndarray, others: np.ndarray) -> Tensor:
    """Return scaled inner products [n, m] between all views of `rows` and all views of `others`, float32."""
    gram = torch.zeros(len(rows) * len(table.views), len(others) * len(table.views))
    for item, factor in zip(space.inputs, scaling.factors, strict=True):
        x = table.read(item, rows, all_views=True) * factor
        y = x if others is rows else table.read(item, others, all_views=True) * factor
        gram.addmm_(x, y.T, alpha=1 / len(space.inputs))
    return gram


def landmarks_of(table: FeatureTable) -> np.ndarray:
    """Return the pictures that span the components: all, or evenly spaced ones where there are too many."""
    most = max(1, MAX_LANDMARKS // len(table.views))
    return np.arange(len(table)) if len(table) <= most else np.linspace(0, len(table) - 1, most).astype(np.int64)


def fit_linear(table: FeatureTable, space: Space, how: LinearFit) -> LinearReadout:
    """Fit a linear readout on all training pictures and views.

    Args:
        table: the training pictures.
        space: the features.
        how: solver and settings.

    Returns:
        One linear layer on the features as they are.
    """
    marks = landmarks_of(table)
    scaling = Scaling(table, space, marks)
    gram = gram_of(table, space, scaling, marks, marks)
    found = Spectrum.of(gram).components(dims=how.dims, whiten=how.whiten)
    rows = np.arange(len(table))
    spanned = len(marks) == len(table)
    if spanned:
        scores = found.scores(gram.double())
    else:
        parts = np.array_split(rows, -(-len(rows) // _CHUNK))
        per_part = [
            found.scores(gram_of(table, space, scaling, part, marks).double()).reshape(len(table.views), len(part), -1)
            for part in parts
        ]
        scores = torch.cat(per_part, dim=1).flatten(0, 1)
    labels, classes = table.targets(rows, all_views=True), table.num_classes
    if how.solver == "ridge":
        ((weight, bias),) = fit_ridge(scores, labels, num_classes=classes, penalties=[how.penalty], orthogonal=spanned)
    else:
        # From strong to weak: a path of warm starts takes fewer steps than the weakest alone.
        path = [how.penalty * 10**power for power in (3, 2, 1, 0)]
        *_, (weight, bias) = fit_logistic(scores, labels, num_classes=classes, penalties=path, max_iter=200)
    weight, bias = weight * how.sharpness, bias * how.sharpness
    return _folded(table, space=space, scaling=scaling, marks=marks, found=found, weight=weight, bias=bias)


def _folded(
    table: FeatureTable,
    *,
    space: Space,
    scaling: Scaling,
    marks: np.ndarray,
    found: Components,
    weight: Tensor,
    bias: Tensor,
) -> LinearReadout:
    """Write a layer on scores as a layer on features: scores are inner products with centred pictures."""
    shares = found.rows @ weight  # [m, K]: how much of each picture is in each class's weights
    shares = shares - shares.mean(dim=0)
    layers = []
    for item, factor in zip(space.inputs, scaling.factors, strict=True):
        x = table.read(item, marks, all_views=True)
        scaled = (x * factor).double()
        layers.append((scaled.T @ shares / len(space.inputs)) * factor.double()[:, None])
    full = torch.cat(layers)
    offset = bias - (found.mean - found.total) @ (found.rows @ weight)
    readout = LinearReadout(space.inputs, num_features=len(full), num_classes=table.num_classes)
    with torch.no_grad():
        readout.linear.weight.copy_(full.T)
        readout.linear.bias.copy_(offset)
    return readout.eval()


def average_linear(readouts: Sequence[LinearReadout]) -> LinearReadout:
    """Return the linear readout whose logits are the mean of those of several.

    Args:
        readouts: of inputs of one width each, such as the grids of blocks; some may share inputs.
    """
    parts: dict[Input, Tensor] = {}
    for readout in readouts:
        weights = readout.linear.weight.detach().double().chunk(len(readout.inputs), dim=1)
        for item, weight in zip(readout.inputs, weights, strict=True):
            parts[item] = parts.get(item, torch.zeros_like(weight)) + weight / len(readouts)
    full = torch.cat(list(parts.values()), dim=1)
    mean = LinearReadout(tuple(parts), num_features=full.shape[1], num_classes=len(full))
    with torch.no_grad():
        mean.linear.weight.copy_(full)
        mean.linear.bias.copy_(torch.stack([readout.linear.bias.double() for readout in readouts]).mean(dim=0))
    return mean.eval()
