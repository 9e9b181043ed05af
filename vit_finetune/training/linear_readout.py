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
_COLUMNS = 4096  # features turned into double precision at once
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


class Landmarks:
    """The pictures that span the components, all or evenly spaced ones where there are too many, and their products.

    What a whole input is multiplied by is one number, so the inner products of such an input serve every space that it
    is in, and every fit: they are kept.

    Args:
        table: the training pictures.

    Attributes:
        rows: the places of the m pictures.
    """

    def __init__(self, table: FeatureTable) -> None:
        most = max(1, MAX_LANDMARKS // len(table.views))
        count = len(table)
        self.table = table
        self.rows = np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)
        self._products: dict[Input, Tensor] = {}

    def scaled(self, space: Space) -> tuple[list[Tensor], Tensor]:
        """Return what makes the features of a space comparable, and the inner products of the scaled ones.

        Returns:
            For each input a factor for each feature [F], or one for all [1]; and [m, m] over all views, float32.
        """
        factors = []
        gram = torch.zeros([len(self.rows) * len(self.table.views)] * 2)
        for item in space.inputs:
            if space.standardize:
                x = self.table.read(item, self.rows, all_views=True)
                factors.append(_per_feature(x[: len(self.rows)]))
                gram += _products(x * factors[-1])
            else:
                products = self._whole(item)
                factors.append(_of_whole(products[: len(self.rows), : len(self.rows)]))
                gram += products * factors[-1].square()
        return factors, gram / len(space.inputs)

    def _whole(self, item: Input) -> Tensor:
        """Return the inner products [m, m] of an input as it is, over all views."""
        if item not in self._products:
            self._products[item] = _products(self.table.read(item, self.rows, all_views=True))
        return self._products[item]


def _products(x: Tensor) -> Tensor:
    return x @ x.T


def _of_whole(products: Tensor) -> Tensor:
    """Return the factor [1] that gives all features of pictures together a variance of 1, by their inner products."""
    products = products.double()
    return (products.trace() / len(products) - products.mean()).clamp_min(1e-12).rsqrt().float().reshape(1)


def _per_feature(x: Tensor) -> Tensor:
    """Return the factors [F] that give each feature of pictures [n, F] the same variance."""
    variance: Tensor = x.double().var(dim=0, correction=0).float()
    # A feature that never changes says nothing, and must not become noise.
    factor: Tensor = torch.where(variance > 0, variance.clamp_min(1e-12).rsqrt(), torch.zeros_like(variance))
    factor /= len(variance) ** 0.5
    return factor


def fit_linear(marks: Landmarks, space: Space, how: LinearFit) -> LinearReadout:
    """Fit a linear readout on all training pictures and views.

    Args:
        marks: of the training pictures.
        space: the features.
        how: solver and settings.

    Returns:
        One linear layer on the features as they are.
    """
    table, rows = marks.table, np.arange(len(marks.table))
    factors, gram = marks.scaled(space)
    found = Spectrum.of(gram).components(dims=how.dims, whiten=how.whiten)
    spanned = len(marks.rows) == len(table)
    scores = found.scores(gram.double()) if spanned else _scores(marks, space, factors, found)
    labels, classes = table.targets(rows, all_views=True), table.num_classes
    if how.solver == "ridge":
        ((weight, bias),) = fit_ridge(scores, labels, num_classes=classes, penalties=[how.penalty], orthogonal=spanned)
    else:
        # From strong to weak: a path of warm starts takes fewer steps than the weakest alone.
        path = [how.penalty * 10**power for power in (3, 2, 1, 0)]
        *_, (weight, bias) = fit_logistic(scores, labels, num_classes=classes, penalties=path, max_iter=200)
    return _folded(marks, space, factors, found, weight=weight * how.sharpness, bias=bias * how.sharpness)


def _scores(marks: Landmarks, space: Space, factors: Sequence[Tensor], found: Components) -> Tensor:
    """Return the scores of all pictures of a table, view after view, by products with those that span."""
    table = marks.table
    gram = torch.zeros(len(table.views), len(table), len(marks.rows) * len(table.views))
    for item, factor in zip(space.inputs, factors, strict=True):
        spanning = table.read(item, marks.rows, all_views=True) * (factor.square() / len(factors))
        for rows in np.array_split(np.arange(len(table)), -(-len(table) // _CHUNK)):
            products = table.read(item, rows, all_views=True) @ spanning.T
            gram[:, rows[0] : rows[-1] + 1] += products.view(len(table.views), len(rows), -1)
    return torch.cat([found.scores(part.double()) for part in torch.split(gram.flatten(0, 1), _CHUNK)])


def _folded(
    marks: Landmarks, space: Space, factors: Sequence[Tensor], found: Components, *, weight: Tensor, bias: Tensor
) -> LinearReadout:
    """Write a layer on scores as a layer on features: scores are inner products with centred pictures."""
    shares = found.rows @ weight  # [m, K]: how much of each picture is in each class's weights
    shares = shares - shares.mean(dim=0)
    layers = []
    for item, factor in zip(space.inputs, factors, strict=True):
        x = marks.table.read(item, marks.rows, all_views=True)
        sums = torch.cat([part.double().T @ shares for part in torch.split(x, _COLUMNS, dim=1)])
        layers.append(sums * factor.double().square()[:, None] / len(space.inputs))
    full = torch.cat(layers)
    offset = bias - (found.mean - found.total) @ (found.rows @ weight)
    readout = LinearReadout(space.inputs, num_features=len(full), num_classes=marks.table.num_classes)
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
