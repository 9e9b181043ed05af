"""Whole runs: what a run leaves behind, that a killed one ends as if undisturbed, that two processes equal one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from run_helpers import ROOT, everything, make_pictures, run_module, tiny_config
from safetensors.torch import load_file

from vit_finetune import Config, Predictor, finetune, load_splits, splits_from
from vit_finetune.common.errors import RequestError
from vit_finetune.data.manifest import manifest_hash
from vit_finetune.finetune import RunResult
from vit_finetune.pictures import open_splits


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One run that several tests look at."""
    return finetune(tiny_config(pictures, tmp_path_factory.mktemp("runs") / "one", run={"report": "auto"}))


def rows(run_dir: Path, split: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_finetune__run_folder_is_the_documented_one(finished: RunResult) -> None:
    """Every file of the run folder is there, and the figures in them agree with the result."""
    names = {path.name for path in finished.run_dir.iterdir()}
    assert names == {
        *("config.yaml", "plan.json", "environment.json", "load_report.json", "manifest.parquet", "metrics.jsonl"),
        *("timing.jsonl", "run.log", "metrics.json", "checkpoints", "model", "predictions.parquet"),
        "report.html",
    }
    figures = json.loads((finished.run_dir / "metrics.json").read_text())
    assert figures["split"] == "val"
    assert figures["num_samples"] == 15
    assert {name: figures[name] for name in finished.metrics} == finished.metrics
    assert finished.num_steps == 8
    best = (finished.run_dir / "checkpoints" / "BEST").read_text().strip()
    assert best == f"step-{finished.best_step:08d}"


def test_finetune__rows_are_functions_of_the_step_only(finished: RunResult) -> None:
    """metrics.jsonl has a row for each step and evaluation, and nothing that a clock says."""
    assert [row["step"] for row in rows(finished.run_dir, "train")] == list(range(1, 9))
    assert [row["step"] for row in rows(finished.run_dir, "val")] == [4, 8]
    assert set(rows(finished.run_dir, "train")[0]) == {"step", "epoch", "split", "loss", "lr", "grad_norm"}
    assert rows(finished.run_dir, "val")[0]["epoch"] == pytest.approx(4 * 12 / 42)


def test_finetune__first_loss_of_a_zero_head_is_ln_k(finished: RunResult) -> None:
    """A zero-initialised head says nothing at first: the loss of step 1 is ln 3 for three classes."""
    assert rows(finished.run_dir, "train")[0]["loss"] == pytest.approx(math.log(3), abs=1e-6)


def test_finetune__resolved_config_reads_back(finished: RunResult, pictures: Path) -> None:
    """config.yaml is the whole configuration, autos kept as auto, and loads back equal."""
    config = Config.load(finished.run_dir / "config.yaml")
    assert config == Config.load(tiny_config(pictures, finished.run_dir, run={"report": "auto"}))
    assert yaml.safe_load((finished.run_dir / "config.yaml").read_text())["train"]["mixed_precision"] == "auto"


def test_finetune__predictions_are_every_val_picture_in_order(finished: RunResult, pictures: Path) -> None:
    """predictions.parquet has each held-out picture once, in data set order, and its accuracy is the reported one."""
    import pandas as pd

    table = pd.read_parquet(finished.run_dir / "predictions.parquet")
    assert list(table["index"]) == list(range(15))
    assert len(set(table["path"])) == 15
    assert table["correct"].mean() == pytest.approx(finished.metrics["accuracy"])
    assert (table["label"] == table["path"].map(lambda path: Path(path).parent.name)).all()


def test_model_folder__timm_and_transformers_give_our_predictions(finished: RunResult, pictures: Path) -> None:
    """timm.create_model("local-dir:...") and transformers open model/ as it is and agree with the Predictor."""
    import timm
    from transformers import AutoModelForImageClassification

    folder = finished.run_dir / "model"
    predictor = Predictor(finished.run_dir)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    wrapped = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        ours = predictor.model(images)
        torch.testing.assert_close(theirs(images), ours, atol=1e-5, rtol=0)
        torch.testing.assert_close(wrapped(images).logits, ours, atol=1e-5, rtol=0)
    assert [wrapped.config.id2label[index] for index in range(3)] == ["blue", "green", "red"]


def test_model_folder__single_file_is_enough(finished: RunResult, pictures: Path, tmp_path: Path) -> None:
    """The safetensors file alone carries class names and preprocessing: same probabilities as the run gives."""
    alone = tmp_path / "anything.safetensors"
    alone.write_bytes((finished.run_dir / "model" / "model.safetensors").read_bytes())
    folder = pictures / "val" / "red"
    ours, from_file = Predictor(finished.run_dir)([folder]), Predictor(alone)([folder])
    assert ours.labels == from_file.labels
    np.testing.assert_array_equal(ours.probabilities, from_file.probabilities)


def test_finetune__resume_of_a_finished_run_changes_nothing(finished: RunResult, pictures: Path) -> None:
    """Resuming a run that is done returns its figures; weights and rows stay byte for byte."""
    names = ("metrics.jsonl", "metrics.json", "model/model.safetensors", "checkpoints/BEST")
    before = [(finished.run_dir / name).read_bytes() for name in names]
    again = finetune(tiny_config(pictures, finished.run_dir), resume=True)
    assert again.metrics == finished.metrics
    assert [(finished.run_dir / name).read_bytes() for name in names] == before


def test_finetune__resume_refuses_another_configuration(finished: RunResult, pictures: Path) -> None:
    """A changed learning rate is refused with the difference; a harmless key goes through."""
    with pytest.raises(RequestError, match=r"optimizer\.lr was 0\.001, now 0\.002"):
        finetune(tiny_config(pictures, finished.run_dir, optimizer={"lr": 2e-3}), resume=True)


def test_finetune__resume_refuses_other_data(tmp_path: Path) -> None:
    """One changed picture changes the manifest, and the run says that its data is not what it was."""
    root = make_pictures(tmp_path / "pictures", train=4, val=2)
    config = tiny_config(root, tmp_path / "run", train={"steps": 2})
    finetune(config)
    (root / "train" / "red" / "0.png").write_bytes((root / "train" / "red" / "1.png").read_bytes())
    before = everything(tmp_path / "run")
    with pytest.raises(RequestError) as error:
        finetune(config, resume=True)
    assert str(error.value) == (
        f"{tmp_path / 'run'} was started with other data: 1 changed (such as train/red/0.png); put that back, start "
        "another run.dir, or go on with data.on_change=accept"
    )
    assert everything(tmp_path / "run") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"]


def test_finetune__resume_refuses_other_data_without_a_manifest(tmp_path: Path) -> None:
    """Where the manifest is gone, the newest checkpoint still knows whether the pictures are the same."""
    root = make_pictures(tmp_path / "pictures", train=4, val=2)
    config = tiny_config(root, tmp_path / "run", train={"steps": 2})
    finetune(config)
    (tmp_path / "run" / "manifest.parquet").unlink()
    kept = (root / "train" / "red" / "0.png").read_bytes()
    (root / "train" / "red" / "0.png").write_bytes((root / "train" / "red" / "1.png").read_bytes())
    with pytest.raises(RequestError, match="other data: manifest.parquet is gone, so which pictures is not known"):
        finetune(config, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"]
    (root / "train" / "red" / "0.png").write_bytes(kept)
    finetune(config, resume=True)
    assert (tmp_path / "run" / "manifest.parquet").is_file()


def test_finetune__resume_accepts_other_data_when_told(tmp_path: Path) -> None:
    """Told so, a run goes on with what is there now, says how it differs, keeps its manifest; other classes never."""
    root = make_pictures(tmp_path / "pictures", train=4, val=2)
    config = tiny_config(root, tmp_path / "run", train={"steps": 2})
    finetune(config)
    (root / "train" / "red" / "0.png").unlink()
    config["data"]["on_change"] = "accept"
    finetune(config, resume=True)
    log = (tmp_path / "run" / "run.log").read_text()
    assert "resume: data.on_change was 'error', now 'accept'" in log
    assert "resume: goes on with other data, as data.on_change says: 1 gone (such as train/red/0.png)" in log
    digest = manifest_hash(open_splits(Config.load(config).data, seed=0))
    told = pq.read_schema(tmp_path / "run" / "manifest.parquet").metadata[b"manifest_hash"].decode()
    assert told == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "run"]
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / "crimson")
    with pytest.raises(
        RequestError, match=r"the data has other classes .* \(gone: red; new: crimson\); start another run"
    ):
        finetune(config, resume=True)


def test_finetune__an_error_leaves_no_run_folder(tmp_path: Path) -> None:
    """A broken picture is found before the run's folder is made, so the next try needs no --overwrite."""
    root = make_pictures(tmp_path / "pictures", train=4, val=2)
    (root / "train" / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"0\.png"):
        finetune(tiny_config(root, tmp_path / "runs" / "one"))
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_finetune__linear_probe_leaves_the_backbone_alone(pictures: Path, tmp_path: Path) -> None:
    """Only the head differs between the first and the last checkpoint of a linear probe."""
    result = finetune(
        tiny_config(
            pictures, tmp_path / "probe", tuning={"mode": "linear_probe"}, checkpoint={"every_steps": 1, "keep_last": 9}
        )
    )
    first = load_file(result.run_dir / "checkpoints" / "step-00000001" / "model.safetensors")
    last = load_file(result.run_dir / "checkpoints" / "step-00000008" / "model.safetensors")
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"head.weight", "head.bias"}


def test_finetune__test_split_is_scored_once_and_does_not_select(pictures: Path, tmp_path: Path) -> None:
    """With a test split the final figures are its own; no evaluation row mentions it."""
    result = finetune(tiny_config(pictures, tmp_path / "test", data={"val_split": "val", "test_split": "train"}))
    figures = json.loads((result.run_dir / "metrics.json").read_text())
    assert figures["split"] == "test"
    assert figures["num_samples"] == 42
    assert rows(result.run_dir, "test") == []


def test_finetune__without_val_the_last_step_is_the_result(pictures: Path, tmp_path: Path) -> None:
    """With no val split nothing selects: the model is the last step's."""
    result = finetune(tiny_config(pictures, tmp_path / "noval", data={"val_split": None}))
    assert result.best_step == 8
    assert result.metrics == {}
    assert (result.run_dir / "model" / "config.json").is_file()


@pytest.mark.slow
def test_finetune__killed_run_ends_as_if_undisturbed(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL in mid-epoch, then --resume: final weights and metrics.jsonl are byte for byte the undisturbed run's."""
    options = {"train": {"steps": 24}, "checkpoint": {"every_steps": 5}, "evaluation": {"every_steps": 8}}
    recipes = {name: tmp_path / f"{name}.yaml" for name in ("killed", "whole")}
    for name, path in recipes.items():
        path.write_text(yaml.safe_dump(tiny_config(pictures, tmp_path / name, **options)))
    journal = tmp_path / "killed" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_finetune", "train", str(recipes["killed"])],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") >= 9) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists(), "the run ended before it was killed"

    finetune(recipes["killed"], resume=True)
    assert "resume: going on after step" in (tmp_path / "killed" / "run.log").read_text()
    finetune(recipes["whole"])
    for name in ("metrics.jsonl", "model/model.safetensors", "checkpoints/step-00000024/optimizer.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_finetune__two_processes_are_one(pictures: Path, tmp_path: Path) -> None:
    """The quickstart's recipe, made tiny, on two gloo processes: loss curve of one to 1e-5, every count exact.

    Both see the same pictures with the same augmentation, DropPath and patch dropout.
    """
    overrides = [
        *("model.pretrained=null", "model.name=vit_tiny_patch16_224", "model.img_size=32", "model.drop_path_rate=0.2"),
        *("model.patch_drop_rate=0.25", "model.overrides.depth=2", "model.overrides.embed_dim=48"),
        *(f"data.root={pictures}", "data.color_jitter=0.3", "data.auto_augment=trivialaugment"),
        *("train.steps=12", "train.global_batch_size=12", "train.per_device_batch_size=4", "schedule.warmup_steps=2"),
        *("evaluation.every_steps=4", "run.num_threads=1"),
    ]
    finetune(Config.load("quickstart", overrides=[*overrides, f"run.dir={tmp_path / 'one'}"]))
    done = run_module(["train", "quickstart", *overrides, f"run.dir={tmp_path / 'two'}", "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    for split in ("train", "val"):
        single, double = rows(tmp_path / "one", split), rows(tmp_path / "two", split)
        assert [row["step"] for row in single] == [row["step"] for row in double]
        np.testing.assert_allclose([row["loss"] for row in double], [row["loss"] for row in single], atol=1e-5)
    assert [row["accuracy"] for row in single] == [row["accuracy"] for row in double]
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert figures[0]["per_class"] == figures[1]["per_class"]
    assert figures[0]["num_samples"] == figures[1]["num_samples"] == 15
    assert done.stdout.count("plan     ") == 2, "only the first process speaks"


@pytest.mark.slow
def test_finetune__a_broken_picture_on_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    """A picture that cannot be decoded stops both processes with one line that names it, and exit code 2."""
    root = make_pictures(tmp_path / "pictures", train=4, val=2)
    broken = root / "train" / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:3000])  # the header is fine, the pixels end early
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_config(root, tmp_path / "run")))
    done = run_module(["train", str(recipe), "--num-processes", "2"])
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert str(broken) in done.stderr
    assert "Traceback" not in done.stderr


def test_finetune__trackers_get_the_figures(pictures: Path, tmp_path: Path) -> None:
    """A tracker asked for by name writes the loss of every step through Accelerate."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = finetune(tiny_config(pictures, tmp_path / "tracked", run={"trackers": ["tensorboard"]}))
    events = EventAccumulator(str(next(result.run_dir.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    np.testing.assert_allclose(logged, [row["loss"] for row in rows(result.run_dir, "train")], rtol=1e-6)


def test_finetune__grad_checkpointing_changes_no_number(finished: RunResult, pictures: Path, tmp_path: Path) -> None:
    """Recomputing blocks in the backward pass gives the same run, byte for byte."""
    again = finetune(tiny_config(pictures, tmp_path / "lean", train={"grad_checkpointing": True}))
    assert (again.run_dir / "metrics.jsonl").read_bytes() == (finished.run_dir / "metrics.jsonl").read_bytes()


def test_finetune__takes_open_pictures(pictures: Path, tmp_path: Path) -> None:
    """Pictures given by Python train to the bit as the same ones in a folder, and config.yaml says where they were."""
    splits = load_splits(root=pictures)
    config = tiny_config(pictures, tmp_path / "folder", train={"steps": 2})
    from_folder = finetune(config)
    from_python = finetune({**config, "run": {**config["run"], "dir": str(tmp_path / "python")}}, data=splits)
    files = [Path("model", "model.safetensors"), Path("metrics.jsonl"), Path("predictions.parquet")]
    for name in files:
        assert (from_folder.run_dir / name).read_bytes() == (from_python.run_dir / name).read_bytes(), name
    assert Config.load(from_python.run_dir).data.source == "python"
    kept = Config.load(config, overrides=[f"run.dir={tmp_path / 'kept'}"])
    assert Config.load(finetune(kept, data=splits).run_dir).data.root == str(pictures)


def test_finetune__resumes_with_the_same_pictures_only(pictures: Path, tmp_path: Path) -> None:
    """A run that was given its pictures goes on with them, refuses others, and does not look for them by itself."""
    samples = [(path, path.parent.name) for path in sorted((pictures / "train").rglob("*.png"))]
    config = {key: value for key, value in tiny_config(pictures, tmp_path / "run").items() if key != "data"}
    config["train"] = {"steps": 2, "global_batch_size": 6}
    done = finetune(config, data=splits_from(samples))
    assert finetune(config, data=splits_from(samples), resume=True).metrics == done.metrics
    with pytest.raises(RequestError, match="started with other data: 1 gone"):
        finetune(config, data=splits_from(samples[:-1]), resume=True)
    with pytest.raises(RequestError, match="these pictures came from Python"):
        finetune(Config.load(tmp_path / "run"), resume=True)


def test_finetune__nested_names_and_a_class_that_val_lacks(tmp_path: Path) -> None:
    """x/small and y/small stay two classes to the end; a class without a val picture keeps its number and its row."""
    made = make_pictures(tmp_path / "made")
    for split in ("train", "val"):
        for colour, name in (("blue", "x/small"), ("green", "y/small"), ("red", "x/big")):
            if (split, name) != ("val", "x/big"):
                (tmp_path / "nested" / split / name).parent.mkdir(parents=True, exist_ok=True)
                (made / split / colour).rename(tmp_path / "nested" / split / name)
    done = finetune(tiny_config(tmp_path / "nested", tmp_path / "run", train={"steps": 4}))
    assert Predictor(tmp_path / "run").class_names == ("x/big", "x/small", "y/small")
    rows = json.loads((done.run_dir / "metrics.json").read_text())["per_class"]
    assert [(row["class"], row["num_samples"]) for row in rows] == [("x/big", 0), ("x/small", 5), ("y/small", 5)]
    assert rows[0]["accuracy"] is None


def test_finetune__a_list_and_then_its_manifest(pictures: Path, tmp_path: Path) -> None:
    """A run of a CSV, and one of that run's manifest.parquet under another seed, train on the same split."""
    files = sorted((pictures / "train").rglob("*.png"))
    lines = [f"{path.relative_to(pictures)},{path.parent.name},{index % 14}\n" for index, path in enumerate(files)]
    (tmp_path / "list.csv").write_text("path,label,person\n" + "".join(lines))
    data = {"root": str(pictures), "source": str(tmp_path / "list.csv"), "split_by": "group", "group_column": "person"}
    finetune(tiny_config(pictures, tmp_path / "first", data=data, train={"steps": 2}))
    again = {"root": None, "source": str(tmp_path / "first" / "manifest.parquet")}
    finetune(tiny_config(pictures, tmp_path / "second", data=again, run={"seed": 5, "dir": str(tmp_path / "second")}))
    first, second = (pq.read_table(tmp_path / name / "manifest.parquet") for name in ("first", "second"))
    assert first.schema.metadata[b"manifest_hash"] == second.schema.metadata[b"manifest_hash"]
