"""Convex fits against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from readout_helpers import table_of
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from vit_finetune.training.knn_readout import fit_knn
from vit_finetune.training.linear_readout import Landmarks, LinearFit, Space, Spectrum, average_linear, fit_linear
from vit_finetune.training.readout import logits_of
from vit_finetune.training.solvers import fit_logistic, fit_ridge, fit_sharpness

ROWS = np.arange(60)


def test_fit_logistic__coefficients_are_sklearns() -> None:
    """The minimiser at each penalty of a path has scikit-learn's coefficients, C = 1 / (n x penalty)."""
    x = table_of().views[0]["embedding"].astype(np.float64)
    y = table_of().labels
    penalties = (1e-1, 1e-2)
    fits = fit_logistic(torch.from_numpy(x), torch.from_numpy(y), num_classes=3, penalties=penalties, max_iter=300)
    for penalty, (weight, bias) in zip(penalties, fits, strict=True):
        theirs = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-10, max_iter=5000).fit(x, y)
        np.testing.assert_allclose(weight.T, theirs.coef_, atol=2e-4)
        np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-4)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_fit_ridge__is_sklearns(orthogonal: bool) -> None:
    """Ridge on one-hot classes is scikit-learn's, also by the short cut for scores of principal components."""
    x = table_of().views[0]["embedding"].astype(np.float64)
    x = PCA(8).fit_transform(x) if orthogonal else x
    y = table_of().labels
    ((weight, bias),) = fit_ridge(
        torch.from_numpy(x), torch.from_numpy(y), num_classes=3, penalties=[0.01], orthogonal=orthogonal
    )
    theirs = Ridge(alpha=0.01 * len(x)).fit(x, np.eye(3)[y])
    np.testing.assert_allclose(weight.T, theirs.coef_, atol=1e-8)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=1e-8)


@pytest.mark.parametrize("whiten", [0.0, 1.0])
def test_spectrum__scores_are_sklearns_pca(whiten: float) -> None:
    """Scores from inner products are PCA's up to one scale and the signs, for pictures in and outside of the fit."""
    x = table_of(80, width=30).views[0]["embedding"].astype(np.float64)
    train, other = x[:60], x[60:]
    found = Spectrum.of(torch.from_numpy(train @ train.T)).components(dims=5, whiten=whiten)
    theirs = PCA(5, whiten=bool(whiten)).fit(train)
    scale = np.sqrt((theirs.transform(train) ** 2).sum(axis=1).mean())
    for pictures in (train, other):
        ours = found.scores(torch.from_numpy(pictures @ train.T)).numpy()
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs.transform(pictures)) / scale, atol=1e-9)


def test_fit_linear__folded_layer_is_scale_then_sklearn() -> None:
    """The one linear layer that comes out, centring and scaling folded in, gives sklearn's pipeline's probabilities."""
    table = table_of()
    space = Space((("embedding", -1), ("cls", 2)), standardize=True)
    readout = fit_linear(Landmarks(table), space, LinearFit("logistic", None, 0.0, 1e-3))
    x = np.concatenate([table.views[0]["embedding"], table.views[0]["cls"][:, 2]], axis=1).astype(np.float64)
    scaled = StandardScaler().fit_transform(x) / np.sqrt(x.shape[1])
    theirs = LogisticRegression(C=1 / (60 * 1e-3), tol=1e-10, max_iter=9000).fit(scaled, table.labels)
    ours = logits_of(table, readout, ROWS).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaled), atol=2e-3)


@pytest.mark.parametrize("num_views", [1, 2])
def test_fit_linear__landmarks_span_all_where_features_are_few(num_views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer pictures spanning the components than there are, read in parts, ridge on a full-rank space is the same
    layer, on one view of each picture and on two.
    """
    one, other = table_of(60), table_of(60, seed=1)
    table = replace(one, views=(*one.views, *other.views)[:num_views])
    space = Space((("embedding", -1), ("cls", 2)), standardize=False)
    whole = fit_linear(Landmarks(table), space, LinearFit("ridge", None, 0.0, 1e-3))
    monkeypatch.setattr("vit_finetune.training.linear_readout.MAX_LANDMARKS", 30 * num_views)
    monkeypatch.setattr("vit_finetune.training.linear_readout._CHUNK", 7)
    some = fit_linear(Landmarks(table), space, LinearFit("ridge", None, 0.0, 1e-3))
    # The scale of the penalty comes from the landmarks; predictions hardly move.
    agree = logits_of(table, whole, ROWS).argmax(1) == logits_of(table, some, ROWS).argmax(1)
    assert agree.float().mean() >= 0.95


def test_average_linear__is_the_mean_of_logits() -> None:
    """Averaging linear readouts that share inputs gives one layer with the mean logits."""
    table = table_of()
    spaces = (
        Space((("grid", 0), ("grid", 1)), standardize=False),
        Space((("grid", 1), ("grid", 3)), standardize=False),
    )
    marks = Landmarks(table)
    parts = [fit_linear(marks, space, LinearFit("ridge", None, 0.0, 1e-3)) for space in spaces]
    mean = torch.stack([logits_of(table, part, ROWS) for part in parts]).mean(dim=0)
    torch.testing.assert_close(logits_of(table, average_linear(parts), ROWS), mean, atol=1e-5, rtol=0)


def test_fit_sharpness__undoes_a_scale() -> None:
    """Logits that were calibrated and then multiplied by 7 get the factor 1/7 relative to themselves."""
    labels = torch.from_numpy(table_of(300).labels)
    noise = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = noise + 2 * torch.nn.functional.one_hot(labels)
    once = fit_sharpness(x, labels)
    assert fit_sharpness(7 * x, labels) == pytest.approx(once / 7, rel=1e-3)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_fit_knn__probabilities_are_sklearns(k: int) -> None:
    """Shares of exp(cosine / temperature) votes are those of scikit-learn's neighbours with that weight."""
    table, others = table_of(), table_of(30, seed=1)
    ours = logits_of(others, fit_knn(table, ROWS, k=k), np.arange(30)).exp().numpy()
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(table.views[0]["embedding"], table.labels)
    np.testing.assert_allclose(ours, theirs.predict_proba(others.views[0]["embedding"]), atol=1e-4)
