"""The choice among what was tried on held-out folds, and means of linear readouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from readout_helpers import table_of
from torch import Tensor

from vit_finetune.models import LinearReadout
from vit_finetune.training.folds import folds_of
from vit_finetune.training.linear_readout import Space
from vit_finetune.training.readout import logits_of, search_readout
from vit_finetune.training.sgd_readout import Recipe
from vit_finetune.training.trials import Held, Trial, best_mean, best_of

RECIPE = Recipe(num_steps=12, batch_size=16, seed=0)
TABLE = table_of()
FOLDS = folds_of(TABLE.labels, num_folds=3, how="stratified", seed=0)
LABELS = torch.tensor([0, 0, 1, 1])


def no_fit() -> LinearReadout:
    """Stand for a fit that is never asked for."""
    raise AssertionError


def trial(name: str, logits: Tensor, *, is_linear: bool = True) -> Trial:
    """Return a try of a space of that name that says these logits of four pictures in two folds."""
    held = Held(list(logits.split(2)), list(LABELS.split(2)))
    return Trial.of(
        name, {"features": name}, held, no_fit, Space(((name, 0),), standardize=True) if is_linear else None
    )


def logits_for(*margins: float) -> Tensor:
    """Return logits that are right by these margins."""
    sign = torch.where(LABELS == 1, 1.0, -1.0)
    half = torch.tensor(margins) * sign / 2
    return torch.stack([-half, half], dim=1)


def test_best_of__accuracy_to_one_standard_error_then_loss() -> None:
    """0.93 of 1,000 has an error of 0.0081: 0.925 with less loss wins, 0.92 with still less does not."""
    thousand = Held([torch.zeros(1000, 2)], [torch.zeros(1000, dtype=torch.int64)])
    first = Trial.of("logistic", {}, thousand, no_fit)
    tries = [
        replace(first, accuracy=accuracy, loss=loss) for accuracy, loss in ((0.93, 0.3), (0.925, 0.2), (0.92, 0.1))
    ]
    assert best_of(tries) is tries[1]


def test_best_mean__of_those_that_help() -> None:
    """Two spaces that err on different pictures join; one that errs everywhere, and neighbours, do not."""
    tries = [
        trial("grid", logits_for(4, 4, 4, -1)),
        trial("noise", logits_for(-3, 1, -2, -3)),
        trial("max", logits_for(-1, 4, 4, 4)),
        trial("knn", logits_for(9, 9, 9, 9), is_linear=False),
    ]
    mean = best_mean(tries)
    assert mean is not None
    assert [part["features"] for part in mean.settings["mean_of"]] == ["grid", "max"]
    assert mean.accuracy == 1.0
    assert mean.loss == pytest.approx(float(np.log1p(np.exp([-1.5, -4, -4, -1.5])).mean()))  # written out
    assert best_of([*tries[:3], mean]) is mean


def test_best_mean__none_where_one_is_best_alone() -> None:
    """A space that others only dilute stays alone; so does a single one."""
    alone = trial("grid", logits_for(4, 4, 4, 4))
    assert best_mean([alone, trial("max", logits_for(1, 1, -1, 1))]) is None
    assert best_mean([alone]) is None
    assert best_mean([trial("knn", logits_for(1, 1, 1, 1), is_linear=False)]) is None


def test_best_mean__its_fit_is_one_linear_layer() -> None:
    """On real tries of three spaces the fitted mean's logits are the mean of its members' logits."""
    names = ("logistic", "multilayer", "spatial")
    tries = [one for name in names for one in search_readout(name, TABLE, FOLDS, recipe=RECIPE, num_heads=2)]
    mean = best_mean(tries)
    assert mean is not None
    rows = np.arange(len(TABLE))
    members = [next(one for one in tries if dict(one.settings) == part) for part in mean.settings["mean_of"]]
    expected = torch.stack([logits_of(TABLE, member.fit(), rows) for member in members]).mean(dim=0)
    fitted = mean.fit()
    assert isinstance(fitted, LinearReadout)
    torch.testing.assert_close(logits_of(TABLE, fitted, rows), expected, atol=1e-4, rtol=1e-4)
    assert mean.loss <= min(member.loss for member in members)
