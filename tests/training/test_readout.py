"""The search over readouts, and those trained by steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from readout_helpers import LAYERS, table_of

from vit_finetune.common.errors import RequestError
from vit_finetune.models import LinearReadout
from vit_finetune.training.features import FeatureTable
from vit_finetune.training.folds import folds_of
from vit_finetune.training.readout import READOUTS, logits_of, search_readout
from vit_finetune.training.sgd_readout import GRID_LRS, Recipe, attentive_probes, grid_of_heads, train_probes
from vit_finetune.training.trials import best_of

RECIPE = Recipe(num_steps=12, batch_size=16, seed=0)
TABLE = table_of()
FOLDS = folds_of(TABLE.labels, num_folds=3, how="stratified", seed=0)
ROWS = np.arange(len(TABLE))


def test_grid_of_heads__is_dinov2s_52() -> None:
    """13 rates x {1, 4} blocks x {class token, with mean patch}, rates scaled by batch / 256."""
    heads = grid_of_heads(TABLE, RECIPE)
    assert len(heads) == 52
    assert sorted({head.lr for head in heads}) == pytest.approx([lr * 16 / 256 for lr in GRID_LRS])
    assert {len(head.inputs) for head in heads} == {1, 2, 4, 5}
    assert heads[0].inputs == (("cls", 3),)
    assert heads[-1].inputs == (*(("cls", layer) for layer in LAYERS), ("avg", 3))


def test_train_probes__52_in_one_pass_are_52_alone() -> None:
    """Every head of the grid, trained beside 51 others, ends with the very weights it gets when trained alone."""
    heads = grid_of_heads(TABLE, RECIPE)
    together = train_probes(TABLE, heads, RECIPE, ROWS)
    assert len(together) == 52
    for head, one in zip(heads, together, strict=True):
        (alone,) = train_probes(TABLE, [head], RECIPE, ROWS)
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor, one.state_dict()[name]), (head, name)


def test_train_probes__a_head_is_torchs_sgd_written_out() -> None:
    """One head, stepped by hand with torch's SGD and CosineAnnealingLR as DINOv2's script does, gives the same."""
    head = grid_of_heads(TABLE, RECIPE)[10]
    start = train_probes(TABLE, [head], replace(RECIPE, num_steps=0), ROWS)[0]
    layer = torch.nn.Linear(12, 3)
    layer.load_state_dict({name.removeprefix("linear."): value for name, value in start.state_dict().items()})
    optimizer = torch.optim.SGD(layer.parameters(), lr=head.lr, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0)
    from vit_finetune.training.sgd_readout import _batches

    for _, batch in _batches(TABLE, RECIPE, ROWS):
        optimizer.zero_grad()
        logits = layer(torch.from_numpy(TABLE.views[0]["cls"][batch, 3]))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(TABLE.labels[batch])).backward()
        optimizer.step()
        schedule.step()
    (ours,) = train_probes(TABLE, [head], RECIPE, ROWS)
    assert isinstance(ours, LinearReadout)
    torch.testing.assert_close(ours.linear.weight, layer.weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", READOUTS)
def test_search_readout__finds_the_signal(name: str) -> None:
    """Every readout is scored on held-out pictures above chance, repeats exactly, and its final fit generalises."""
    first, again = (search_readout(name, TABLE, FOLDS, recipe=Recipe(60, 16, 0), num_heads=2) for _ in range(2))
    assert [trial.to_mapping() for trial in first] == [trial.to_mapping() for trial in again]
    best = best_of(first)
    assert 0.5 < best.accuracy <= 1.0
    others = table_of(60, seed=5)
    right = (logits_of(others, best.fit(), ROWS).argmax(dim=1).numpy() == others.labels).mean()
    assert right > 0.55


def test_search_readout__never_sees_held_out_labels() -> None:
    """With labels shuffled, held-out accuracy is chance, though the same pictures are then fitted well."""
    labels = np.random.default_rng(3).permutation(TABLE.labels)
    shuffled = FeatureTable(TABLE.views, labels, LAYERS, 3)
    best = best_of(search_readout("spatial", shuffled, FOLDS, recipe=RECIPE, num_heads=2))
    assert best.accuracy < 0.55
    assert (logits_of(shuffled, best.fit(), ROWS).argmax(dim=1).numpy() == labels).mean() > best.accuracy


def test_search_readout__views_train_but_are_not_held_out() -> None:
    """A second view doubles what is fitted on; held-out pictures are counted once, by their plain view."""
    views = (TABLE.views[0], {name: array + 0.1 for name, array in TABLE.views[0].items()})
    table = FeatureTable(views, TABLE.labels, LAYERS, 3)
    for name in ("knn", "logistic", "sgd_grid"):
        trials = search_readout(name, table, FOLDS, recipe=RECIPE, num_heads=2)
        assert all(trial.accuracy * 60 == pytest.approx(round(trial.accuracy * 60)) for trial in trials)
    assert table.read(("embedding", -1), ROWS, all_views=True).shape == (120, 12)


def test_search_readout__unknown_name() -> None:
    """A misspelt readout is refused with what was meant."""
    with pytest.raises(RequestError, match="did you mean 'spatial'"):
        search_readout("spatail", TABLE, FOLDS, recipe=RECIPE, num_heads=2)


def test_attentive_probes__queries_that_divide_the_width() -> None:
    """Queries are as many as heads, and 32 where the width divides by it."""
    assert {probe.num_queries for probe in attentive_probes(TABLE, num_heads=3)} == {3}
    assert {probe.num_queries for probe in attentive_probes(table_of(width=64), num_heads=4)} == {4, 32}


def test_search_readout__one_odd_patch_anywhere() -> None:
    """A patch that stands out, each time elsewhere among 64, is lost in means but not in extremes."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 1, (120, 64, 12)).astype(np.float32)
    labels = np.arange(120) % 2
    odd = np.flatnonzero(labels)
    tokens[odd, rng.integers(0, 64, len(odd)), 5] += 6
    means = {"cls": tokens.mean(axis=1), "avg": tokens.mean(axis=1)}
    extremes = {"max": tokens.max(axis=1), "min": tokens.min(axis=1)}
    view = {name: array[:, None] for name, array in (means | extremes | {"grid": tokens}).items()}
    table = FeatureTable((view,), labels, (0,), 2)
    folds = folds_of(labels, num_folds=3, how="stratified", seed=0)
    found = {
        name: best_of(search_readout(name, table, folds, recipe=RECIPE, num_heads=2)).accuracy
        for name in ("multilayer", "spatial")
    }
    assert found["multilayer"] > 0.9
    assert found["spatial"] < 0.75
