"""Whole runs with everything that changes what is learned: they resume to the byte, and two processes are one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from run_helpers import make_pictures, run_module, tiny_config
from safetensors.torch import load_file

from vit_finetune import Predictor, RequestError, RunResult, evaluate, finetune, splits_from
from vit_finetune.evaluation import write_predictions
from vit_finetune.training.checkpoint import load_checkpoint

NUM_STEPS = 6
# Mixing that ends on the way, averaged weights, classes seen equally often.
TRAIN = {
    "steps": NUM_STEPS,
    "global_batch_size": 6,
    "per_device_batch_size": 2,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "mixup_off_epoch": 2.0,
    "ema_decay": 0.8,
    "imbalance": "balanced_sampler",
    "early_stopping_patience": 50,
}


def config_of(pictures: Path, run_dir: Path, **sections: Any) -> dict[str, dict[str, Any]]:
    """Return a run that scores and saves every step."""
    merged = {"train": TRAIN, "evaluation": {"every_steps": 1}, "checkpoint": {"keep_last": 9}, **sections}
    return tiny_config(pictures, run_dir, **merged)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with five pictures of red, five of green and one of blue to train on."""
    root = make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=5, val=2)
    for index in range(1, 5):
        (root / "train" / "blue" / f"{index}.png").unlink()
    return root


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return the undisturbed run."""
    return finetune(config_of(pictures, tmp_path_factory.mktemp("runs") / "whole"))


def rows(run_dir: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split in metrics.jsonl."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["split"] == split]


def test_run__resume_at_any_step_is_bit_identical(whole: RunResult, pictures: Path, tmp_path: Path) -> None:
    """Killed after any step, the run ends byte for byte as the undisturbed one, its averaged weights too."""
    for killed_after in range(1, NUM_STEPS):
        run_dir = tmp_path / f"{killed_after}"
        shutil.copytree(whole.run_dir, run_dir, ignore=shutil.ignore_patterns("model", "metrics.json", "*.parquet"))
        for step in range(killed_after + 1, NUM_STEPS + 1):
            shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}")
        finetune(config_of(pictures, run_dir), resume=True)
        assert "manifest.parquet is gone" in (run_dir / "run.log").read_text()  # told, and written anew
        last = f"checkpoints/step-{NUM_STEPS:08d}"
        for name in (
            "manifest.parquet",
            "metrics.jsonl",
            "metrics.json",
            "model/model.safetensors",
            f"{last}/ema.safetensors",
        ):
            assert (run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes(), (killed_after, name)


@pytest.mark.slow
def test_run__two_processes_are_one(whole: RunResult, pictures: Path, tmp_path: Path) -> None:
    """Two processes mix the same pairs of the same balanced batches: losses to 1e-5, averages and weights to 1e-4."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config_of(pictures, tmp_path / "two")))
    done = run_module(["train", str(recipe), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    for split, keys in (("train", ["loss"]), ("val", ["loss", "ema_loss"])):
        for one, two in zip(rows(whole.run_dir, split), rows(tmp_path / "two", split), strict=True):
            np.testing.assert_allclose([two[key] for key in keys], [one[key] for key in keys], atol=1e-5)
    for name in ("model/model.safetensors", f"checkpoints/step-{NUM_STEPS:08d}/ema.safetensors"):
        ours, theirs = load_file(whole.run_dir / name), load_file(tmp_path / "two" / name)
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, atol=1e-4, rtol=0, msg=key)


def test_run__the_model_is_what_scored_best(whole: RunResult) -> None:
    """model/ holds the averaged weights of the best step where they were better, else the weights."""
    told = json.loads((whole.run_dir / "metrics.json").read_text())
    best = load_checkpoint(whole.run_dir / "checkpoints", told["best_step"])
    assert best.average is not None
    expected = best.average if told["is_average"] else best.model
    found = load_file(whole.run_dir / "model" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    row = rows(whole.run_dir, "val")[told["best_step"] - 1]
    metric = json.loads((whole.run_dir / "plan.json").read_text())["metric"]
    assert metric == "macro_accuracy"  # five to one, so nobody had to ask
    assert row[f"ema_{metric}" if told["is_average"] else metric] == pytest.approx(told[metric])
    log = (whole.run_dir / "run.log").read_text()
    assert "metric   macro_accuracy chooses the best: the largest class has 5.0 times" in log


def test_run__ends_early(pictures: Path, tmp_path: Path) -> None:
    """A run that cannot get better ends when its patience does; resumed, it is the same finished run."""
    train = {"steps": 50, "global_batch_size": 6, "early_stopping_patience": 2}
    config = config_of(pictures, tmp_path / "run", train=train, optimizer={"lr": 1e-12})
    result = finetune(config)
    assert (result.best_step, result.num_steps) == (1, 3)
    assert (
        "step 3  ends the run: 2 evaluations without a better macro_accuracy" in (tmp_path / "run/run.log").read_text()
    )
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    assert finetune(config, resume=True).num_steps == 3
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("imbalance", ["loss_weights", "logit_adjustment"])
def test_run__imbalance_changes_the_first_loss(pictures: Path, tmp_path: Path, imbalance: str) -> None:
    """The first loss of a zero head is ln 3 where weights average to 1, and the entropy of added priors."""
    train = {"steps": 1, "global_batch_size": 11, "imbalance": imbalance}
    finetune(config_of(pictures, tmp_path / "run", train=train, schedule={"warmup_steps": 0}))
    shares = np.array([1, 5, 5]) / 11
    expected = np.log(3) if imbalance == "loss_weights" else -(shares * np.log(shares)).sum()
    assert rows(tmp_path / "run", "train")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_finetune__patience_needs_val(pictures: Path, tmp_path: Path) -> None:
    """Patience without pictures to be patient about is refused."""
    config = config_of(pictures, tmp_path / "run", data={"root": str(pictures), "val_split": None})
    with pytest.raises(RequestError, match="train.early_stopping_patience needs val pictures, and there are none"):
        finetune(config)


def warm_samples(root: Path, split: str) -> list[tuple[Path, list[str]]]:
    """Return pictures with their colour as a class, and `warm` beside red; green has no class at all."""
    classes = {"blue": ["blue"], "green": [], "red": ["red", "warm"]}
    return [(path, classes[path.parent.name]) for path in sorted((root / split).rglob("*.png"))]


MULTILABEL = {"task": "multilabel", "steps": 40, "global_batch_size": 6}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path, Any]:
    """Return a run on pictures with any number of classes, and its pictures."""
    place = tmp_path_factory.mktemp("several")
    root = make_pictures(place / "pictures", train=6, val=4)
    splits = splits_from(warm_samples(root, "train"), warm_samples(root, "val"), warm_samples(root, "val")[:6])
    config = config_of(root, place / "run", train=MULTILABEL, evaluation={"every_steps": 20}, data={"source": "python"})
    config["data"] = {"source": "python"}
    return finetune(config, data=splits), root, splits


def test_multilabel__figures_are_those_of_the_exported_model(several: tuple[RunResult, Path, Any]) -> None:
    """What the run reports on test is what the model folder gives, with its thresholds; the classes are learned."""
    result, _, splits = several
    again = evaluate(result, splits, split="test")
    assert again.metrics == pytest.approx(result.metrics)
    assert set(result.metrics) == {"loss", "mean_average_precision", "macro_f1", "micro_f1", "accuracy"}
    assert rows(result.run_dir, "val")[-1]["mean_average_precision"] > 0.9
    told = json.loads((result.run_dir / "metrics.json").read_text())
    assert told["thresholds"] == dict(zip(("blue", "red", "warm"), Predictor(result).thresholds, strict=True))
    assert [row["threshold"] for row in told["per_class"]] == list(told["thresholds"].values())
    table = pq.read_table(result.run_dir / "predictions.parquet").to_pylist()
    assert [row["label"] for row in table[:6]] == [["blue"]] * 4 + [[]] * 2


def test_multilabel__predictor(several: tuple[RunResult, Path, Any], tmp_path: Path) -> None:
    """A picture gets every class whose sigmoid reaches its threshold, or none; tables carry the lists."""
    result, root, _ = several
    predictor = Predictor(result)
    found = predictor([root / "val" / name / "0.png" for name in ("blue", "green", "red")])
    with torch.no_grad():
        images = torch.stack([predictor._transform(Image.open(path).convert("RGB")) for path in found.paths])
        expected = predictor.model(images).sigmoid().numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    marks = expected >= np.array(predictor.thresholds)
    assert found.label_sets == tuple(tuple(np.array(found.class_names)[row].tolist()) for row in marks)
    write_predictions(found, tmp_path / "preds.parquet")
    assert [row["labels"] for row in pq.read_table(tmp_path / "preds.parquet").to_pylist()] == [
        *map(list, found.label_sets)
    ]
    write_predictions(found, tmp_path / "preds.csv")
    assert '"[""red"", ""warm""]"' in (tmp_path / "preds.csv").read_text() or marks[2].sum() != 2


def test_multilabel__others_open_the_folder(several: tuple[RunResult, Path, Any]) -> None:
    """timm opens the folder, and transformers knows that it is for several classes a picture."""
    import timm
    from transformers import AutoConfig

    result, _, _ = several
    images = torch.rand(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{result.run_dir / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), result.model(images), atol=1e-5, rtol=0)
    assert AutoConfig.from_pretrained(result.run_dir / "model").problem_type == "multi_label_classification"


def test_multilabel__is_not_scored_on_single_classes(several: tuple[RunResult, Path, Any]) -> None:
    """A folder of class folders has one class a picture, which is another task; so the other way round."""
    result, root, _ = several
    for name in ("green",):
        shutil.rmtree(root / "train" / name)
        shutil.rmtree(root / "val" / name)
    with pytest.raises(
        RequestError, match="the model is for several classes a picture, and these pictures have one each"
    ):
        evaluate(result, root / "val")


@pytest.mark.slow
def test_multilabel__two_processes_are_one(tmp_path: Path) -> None:
    """From a table, on two processes: the loss curve of one, and the same figures."""
    root = make_pictures(tmp_path / "pictures", train=5, val=3)
    names = ["blue", "red", "warm"]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Sequence(datasets.ClassLabel(names=names))}
    )

    def table(split: str) -> datasets.Dataset:
        samples = warm_samples(root, split)
        columns = {"image": [str(path) for path, _ in samples], "label": [found for _, found in samples]}
        return datasets.Dataset.from_dict(columns, features=features)

    datasets.DatasetDict(train=table("train"), val=table("val")).save_to_disk(str(tmp_path / "table"))
    train = {**TRAIN, "task": "multilabel", "imbalance": "loss_weights"}
    for name in ("one", "two"):
        config = config_of(root, tmp_path / name, train=train)
        config["data"] = {"source": str(tmp_path / "table")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    finetune(tmp_path / "one.yaml")
    done = run_module(["train", str(tmp_path / "two.yaml"), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    for split, keys in (("train", ["loss"]), ("val", ["loss", "mean_average_precision", "macro_f1", "ema_loss"])):
        for one, two in zip(rows(tmp_path / "one", split), rows(tmp_path / "two", split), strict=True):
            np.testing.assert_allclose([two[key] for key in keys], [one[key] for key in keys], atol=1e-5)
