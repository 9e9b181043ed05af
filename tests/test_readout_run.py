"""Whole readout runs: what they leave behind, that kept features are used, that two processes equal one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from run_helpers import make_pictures, run_module, tiny_config
from safetensors.torch import load_file

from vit_finetune import Predictor, evaluate, evaluate_corrupted, finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.finetune import RunResult


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config_of(pictures: Path, run_dir: Path, cache: Path, **sections: Any) -> dict[str, Any]:
    """Return a readout run of seconds."""
    readout = {"cache_dir": str(cache), **sections.pop("readout", {})}
    own = {"tuning": {"mode": "readout"}, "readout": readout, "train": {"steps": 20}}
    return tiny_config(pictures, run_dir, **(own | sections))


@pytest.fixture(scope="module")
def finished(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return finetune(config_of(pictures, tmp_path_factory.mktemp("runs") / "one", cache, run={"report": "auto"}))


def test_run__folder_is_the_documented_one(finished: RunResult) -> None:
    """Every file is there; every try has a held-out accuracy, one as good as the best is chosen; no seconds."""
    names = {path.name for path in finished.run_dir.iterdir()}
    assert names == {
        *("config.yaml", "plan.json", "environment.json", "load_report.json", "manifest.parquet", "metrics.jsonl"),
        *("timing.jsonl", "run.log", "metrics.json", "model", "predictions.parquet", "readout.json"),
        "report.html",
    }
    told = json.loads((finished.run_dir / "readout.json").read_text())
    assert {row["readout"] for row in told["tried"]} == {"knn", "logistic", "multilayer", "spatial", "mean"}
    top = max(row["accuracy"] for row in told["tried"])
    within = [row for row in told["tried"] if row["accuracy"] >= top - (top * (1 - top) / 42) ** 0.5]
    assert told["chosen"]["loss"] == min(row["loss"] for row in within)
    parts = [json.loads(line)["part"] for line in (finished.run_dir / "timing.jsonl").read_text().splitlines()]
    assert {"features", "search", "fit", "search spatial"} <= set(parts)
    assert not any("seconds" in row for row in told["tried"])


def test_run__figures_are_the_models(finished: RunResult, pictures: Path) -> None:
    """evaluate() on the finished model over the val pictures gives the figures and the probabilities of the run."""
    again = evaluate(finished.run_dir, pictures / "val")
    figures = json.loads((finished.run_dir / "metrics.json").read_text())
    assert again.metrics["accuracy"] == figures["accuracy"] == finished.metrics["accuracy"]
    assert again.metrics["loss"] == pytest.approx(figures["loss"], rel=1e-4)
    table = pd.read_parquet(finished.run_dir / "predictions.parquet")
    np.testing.assert_allclose(np.stack(table["probabilities"]), again.probabilities, atol=1e-4)
    assert finished.metrics["accuracy"] > 0.6
    assert Predictor(finished.run_dir)([pictures / "val" / "red"]).class_names == ("blue", "green", "red")


def test_run__second_run_takes_kept_features_and_is_equal(
    finished: RunResult, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    """On the same pictures nothing is computed again, wherever they lie, and every figure and weight is the same."""
    again = finetune(config_of(pictures, tmp_path / "two", cache))
    log = (tmp_path / "two" / "run.log").read_text()
    assert log.count(": kept,") == 2
    assert ": computed," not in log
    for name in ("readout.json", "metrics.jsonl", "metrics.json", "model/model.safetensors"):
        assert (finished.run_dir / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert again.metrics == finished.metrics


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"img_size": 48}},
        {"data": {"crop_pct": 0.5}},
        {"readout": {"layers": [0]}},
        {"readout": {"grid": 1}},
        {"readout": {"dtype": "float16"}},
        {"model": {"overrides": {"depth": 2, "embed_dim": 48, "num_heads": 2}}},
        {"run": {"seed": 5}},  # other random weights
    ],
    ids=lambda change: next(iter(change)),
)
def test_run__whatever_changes_features_computes_them(
    finished: RunResult, pictures: Path, cache: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Size, transform, blocks, grid, dtype, network and weights are each part of the key: none finds the old entry."""
    config = config_of(pictures, tmp_path / "run", cache, readout={"name": "knn", **change.get("readout", {})})
    for section, values in change.items():
        if section != "readout":
            config[section] = {**config.get(section, {}), **values}
    finetune(config)
    assert (tmp_path / "run" / "run.log").read_text().count(": computed,") == 2


def test_run__another_picture_is_another_key(cache: Path, tmp_path: Path) -> None:
    """One changed training picture computes train again, and takes val from the cache."""
    root = make_pictures(tmp_path / "pictures")
    (root / "train" / "red" / "0.png").write_bytes((root / "train" / "red" / "1.png").read_bytes())
    finetune(config_of(root, tmp_path / "run", cache, readout={"name": "knn"}))
    log = (tmp_path / "run" / "run.log").read_text()
    assert "train view 0: computed" in log
    assert "val view 0: kept" in log


def test_run__logistic_becomes_a_timm_folder(pictures: Path, cache: Path, tmp_path: Path) -> None:
    """A logistic readout is a head: timm opens the folder and agrees with the Predictor; the log says who opens it."""
    import timm
    import torch

    finetune(config_of(pictures, tmp_path / "run", cache, readout={"name": "logistic"}))
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), Predictor(tmp_path / "run").model(images), atol=1e-5, rtol=0)
    assert "timm and transformers open this folder" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize("name", ["sgd_grid", "attentive"])
def test_run__readouts_that_take_steps(name: str, pictures: Path, cache: Path, tmp_path: Path) -> None:
    """The two readouts that train by steps run from a recipe too, for train.steps steps."""
    result = finetune(config_of(pictures, tmp_path / "run", cache, readout={"name": name, "num_folds": 2}))
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["num_steps"] == 20
    assert 0 <= result.metrics["accuracy"] <= 1


def test_run__views_vary_and_are_kept(pictures: Path, cache: Path, tmp_path: Path) -> None:
    """Two views are two entries that differ; three views take the first two from the cache."""
    for count in (2, 3):
        finetune(config_of(pictures, tmp_path / str(count), cache, readout={"name": "knn", "num_views": count}))
    log = (tmp_path / "3" / "run.log").read_text()
    assert "train view 1: kept" in log
    assert "train view 2: computed" in log
    bank = load_file(tmp_path / "2" / "model" / "model.safetensors")["readout.bank"]
    assert len(bank) == 84
    assert not np.allclose(bank[:42], bank[42:])


def test_run__resume_and_overwrite_as_finetunes(
    finished: RunResult, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    """A finished run is not replaced unasked, is returned by resume, and refused with another configuration."""
    config = config_of(pictures, finished.run_dir, cache)
    with pytest.raises(RequestError, match="holds a run already"):
        finetune(config)
    before = (finished.run_dir / "model" / "model.safetensors").stat().st_mtime_ns
    assert finetune(config, resume=True).metrics == finished.metrics
    assert (finished.run_dir / "model" / "model.safetensors").stat().st_mtime_ns == before
    other = config_of(pictures, finished.run_dir, cache, readout={"num_folds": 3})
    with pytest.raises(RequestError, match=r"readout\.num_folds was 4, now 3"):
        finetune(other, resume=True)
    unfinished = config_of(pictures, tmp_path / "cut", cache)
    whole = finetune(unfinished)
    (tmp_path / "cut" / "metrics.json").unlink()  # as a kill before the end leaves it
    assert finetune(unfinished, resume=True).metrics == whole.metrics
    assert (tmp_path / "cut" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("readout", "message"),
    [
        ({"layers": [5]}, "not in a network of 2 blocks"),
        ({"cache_limit_gb": 1e-6}, "readout.cache_limit_gb"),
        ({"num_folds": 50}, "num_folds is 50"),
        ({"groups": "patient_(\\d+)"}, "finds nothing in 42 paths"),
        ({"groups": "("}, "no regular expression"),
    ],
)
def test_run__bad_requests_in_one_line(
    readout: dict[str, Any], message: str, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    """What cannot be is refused with the key, what was got and what to do."""
    with pytest.raises(RequestError, match=message.replace("(", r"\(") if "regular" not in message else message):
        finetune(config_of(pictures, tmp_path / "run", cache, readout=readout))
    assert not (tmp_path / "run").exists()


def test_run__blends_nothing(pictures: Path, cache: Path, tmp_path: Path) -> None:
    """WiSE-FT needs weights that train: refused rather than ignored."""
    config = config_of(pictures, tmp_path / "run", cache, train={"steps": 20, "wise_ft": True})
    with pytest.raises(RequestError, match=r"train\.wise_ft is for weights that train"):
        finetune(config)
    assert not (tmp_path / "run").exists()


def test_run__corrupted_pictures_are_scored_too(pictures: Path, cache: Path, tmp_path: Path) -> None:
    """What metrics.json says of corrupted pictures is what the exported model gives on them."""
    config = config_of(
        pictures, tmp_path / "run", cache, readout={"name": "logistic"}, evaluation={"corruptions": True}
    )
    told = json.loads((finetune(config).run_dir / "metrics.json").read_text())["corruptions"]
    assert told == evaluate_corrupted(tmp_path / "run", pictures / "val", seed=0)
    assert len(told["rows"]) == 9


def test_run__groups_are_read_off_paths(pictures: Path, cache: Path, tmp_path: Path) -> None:
    """An expression with a group deals out whole series: here the last digit of the file name."""
    options = {"name": "logistic", "groups": r"(\d)\.png$", "num_folds": 3}
    result = finetune(config_of(pictures, tmp_path / "run", cache, readout=options))
    assert result.metrics["accuracy"] > 0.5


@pytest.mark.slow
def test_run__two_processes_are_one(finished: RunResult, pictures: Path, tmp_path: Path) -> None:
    """Two gloo processes each compute their share of the features; the readout and every count are those of one."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config_of(pictures, tmp_path / "two", tmp_path / "cache")))
    done = run_module(["train", str(recipe), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((run / "metrics.json").read_text()) for run in (finished.run_dir, tmp_path / "two"))
    assert one["per_class"] == two["per_class"]
    assert one["readout"]["settings"] == two["readout"]["settings"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
