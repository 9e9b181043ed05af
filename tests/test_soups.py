"""Soups of real runs: what comes out opens as a run does, and what does not belong together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_helpers import make_pictures, tiny_config
from safetensors.torch import load_file

from vit_finetune import (
    Predictor,
    average_checkpoints,
    evaluate,
    finetune,
    greedy_soup,
    uniform_soup,
    wise_ft,
)
from vit_finetune.common.errors import RequestError

Trainer = Callable[..., Path]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=5, val=3)


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three short runs of one recipe: seeds 0 and 1, and a linear probe."""
    root = tmp_path_factory.mktemp("runs")
    steps = {"train": {"steps": 4}, "evaluation": {"every_steps": 2}}
    changes = [{"seed": 0}, {"seed": 1}, {"seed": 0}]
    made = []
    for number, change in enumerate(changes):
        config = tiny_config(pictures, root / str(number), **steps)
        config["run"] |= change
        config["model"]["drop_path_rate"] = 0.1 * number  # a soup may vary what only training knows
        if number == 2:
            config["tuning"] = {"mode": "linear_probe"}
        made.append(finetune(config).run_dir)
    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_uniform__is_the_mean_and_opens_as_a_run(runs: list[Path], pictures: Path, tmp_path: Path) -> None:
    """The soup's weights are the mean, its figures those of `evaluate`, and its folder is taken like a run's."""
    soup = uniform_soup(runs[:2], tmp_path / "soup")
    one, two, mean = weights(runs[0]), weights(runs[1]), weights(tmp_path / "soup")
    torch.testing.assert_close(mean["head.weight"], (one["head.weight"] + two["head.weight"]) / 2)
    assert len(soup.rows) == 2
    again = evaluate(tmp_path / "soup", pictures / "val")
    assert again.metrics == pytest.approx(soup.metrics)
    assert Predictor(tmp_path / "soup").class_names == ("blue", "green", "red")
    told = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert told["kind"] == "uniform_soup"
    assert told["ingredients"] == [str(run) for run in runs[:2]]
    assert told["num_samples"] == 9


def test_greedy__is_no_worse_than_any_ingredient(runs: list[Path]) -> None:
    """By the loss, which has no ties here, the soup is at least as good as each run; nothing is written unasked."""
    soup = greedy_soup(runs, metric="loss")
    assert soup.run_dir is None
    assert soup.metrics["loss"] <= min(row["metrics"]["loss"] for row in soup.rows)


def test_wise_ft__ends_are_the_two_runs(runs: list[Path]) -> None:
    """Alpha 0 has the probe's figures and alpha 1 the fine-tuned run's, as those runs wrote them."""
    result = wise_ft(runs[2], runs[0], alphas=(0.0, 0.5))
    assert [row["alpha"] for row in result.rows] == [0.0, 0.5, 1.0]
    for row, run in ((result.rows[0], runs[2]), (result.rows[2], runs[0])):
        told = json.loads((run / "metrics.json").read_text())
        assert row["metrics"] == pytest.approx({name: told[name] for name in row["metrics"]})


def test_average_checkpoints__of_one_run(runs: list[Path], tmp_path: Path) -> None:
    """The mean of a run's two checkpoints, tensor by tensor; more than there are is refused."""
    result = average_checkpoints(runs[0], tmp_path / "mean", num_last=2)
    parts = [load_file(path) for path in sorted((runs[0] / "checkpoints").glob("step-*/model.safetensors"))]
    assert len(parts) == 2
    assert [row["step"] for row in result.rows] == [2, 4]
    name = "blocks.1.mlp.fc1.weight"
    torch.testing.assert_close(weights(tmp_path / "mean")[name], (parts[0][name] + parts[1][name]) / 2)
    with pytest.raises(RequestError, match="holds 2 checkpoints, 3 were asked for; a run keeps more"):
        average_checkpoints(runs[0], num_last=3)


def test_soup__refuses_what_does_not_belong_together(runs: list[Path], pictures: Path, tmp_path: Path) -> None:
    """Another network, other preprocessing and a taken place are refused, each with the reason, before scoring."""
    other = tiny_config(pictures, tmp_path / "other", train={"steps": 2}, data={"mean": [0.4, 0.5, 0.5]})
    wide = tiny_config(pictures, tmp_path / "wide", train={"steps": 2})
    wide["model"]["overrides"] = {"depth": 1, "embed_dim": 48}
    with pytest.raises(RequestError, match=r"cannot be averaged: mean is \[0.5, 0.5, 0.5\] and \[0.4, 0.5, 0.5\]"):
        uniform_soup([runs[0], finetune(other)])
    with pytest.raises(RequestError, match="cannot be averaged: the networks differ in depth"):
        uniform_soup([runs[0], finetune(wide)])
    (tmp_path / "taken").mkdir()
    with pytest.raises(RequestError, match="exists already"):
        uniform_soup(runs, tmp_path / "taken", overwrite=True)
    with pytest.raises(RequestError, match="nothing to average"):
        greedy_soup([])


def test_soup__refuses_to_choose_by_training_pictures(pictures: Path, tmp_path: Path) -> None:
    """The pictures that one seed held out cannot judge a run of another seed, which trained on some of them."""
    made = []
    for seed in (0, 1):
        config = tiny_config(pictures / "train", tmp_path / str(seed), train={"steps": 2})
        config["run"]["seed"] = seed
        made.append(finetune(config))
    with pytest.raises(RequestError, match="pictures that would decide, such as .*runs with the same held-out split"):
        greedy_soup(made)
    assert greedy_soup(made, data=pictures / "val").chosen
