"""`train.wise_ft`: the run's model is the best point of the line, and the ends are the run's own weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import make_pictures, tiny_config
from safetensors.torch import load_file

from vit_finetune import Config, Predictor, evaluate, finetune
from vit_finetune.assembly import build_model
from vit_finetune.common.errors import RequestError
from vit_finetune.common.seeding import derive_seed
from vit_finetune.pictures import run_splits
from vit_finetune.training.checkpoint import save_start


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=5, val=3)


def test_wise_ft__keeps_the_start_and_takes_the_best_point(pictures: Path, tmp_path: Path) -> None:
    """The start is the network before step 1; the model is (1 - alpha) start + alpha best, with the alpha told."""
    sections = {"train": {"steps": 4, "wise_ft": [0.0, 0.5]}, "evaluation": {"metric": "loss", "every_steps": 4}}
    result = finetune(tiny_config(pictures, tmp_path / "run", **sections))
    torch.manual_seed(derive_seed(0, "init"))
    fresh, _ = build_model(Config.load(tmp_path / "run"), run_splits(tmp_path / "run"))
    start = load_file(tmp_path / "run" / "start.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in fresh.state_dict().items())

    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rows = told["wise_ft"]["val"]
    assert [row["alpha"] for row in rows] == [0.0, 0.5, 1.0]
    best = min(rows, key=lambda row: row["metrics"]["loss"])
    assert told["wise_ft"]["alpha"] == best["alpha"]
    assert told["loss"] == pytest.approx(best["metrics"]["loss"], rel=1e-6)
    end = load_file(tmp_path / "run" / "checkpoints" / f"step-{result.best_step:08d}" / "model.safetensors")
    for name, tensor in result.model.state_dict().items():
        expected = (1 - best["alpha"]) * start[name].double() + best["alpha"] * end[name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=0)
    assert evaluate(tmp_path / "run", pictures / "val").metrics["loss"] == pytest.approx(told["loss"], rel=1e-5)


def test_wise_ft__is_the_plain_run_where_the_end_is_best(pictures: Path, tmp_path: Path) -> None:
    """With no point but 1 the model is the plain run's, bit for bit."""
    models = []
    for name, points in (("plain", False), ("blend", [1.0])):
        config = tiny_config(pictures, tmp_path / name, train={"steps": 2, "wise_ft": points})
        models.append(finetune(config).model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_wise_ft__resumes_from_its_kept_start(pictures: Path, tmp_path: Path) -> None:
    """A finished run that is resumed comes to the same choice; without its start it is told what is missing."""
    config = tiny_config(pictures, tmp_path / "run", train={"steps": 2, "wise_ft": True})
    first = finetune(config)
    told = (first.run_dir / "metrics.json").read_text()
    assert len(json.loads(told)["wise_ft"]["val"]) == 11
    finetune(config, resume=True)
    assert (first.run_dir / "metrics.json").read_text() == told
    (first.run_dir / "start.safetensors").unlink()
    with pytest.raises(RequestError, match=r"start.safetensors is missing: train.wise_ft needs the weights"):
        finetune(config, resume=True)


def test_wise_ft__needs_val(pictures: Path, tmp_path: Path) -> None:
    """Without a val split there is nothing to choose by: refused before anything is written."""
    config = tiny_config(pictures, tmp_path / "run", train={"wise_ft": True}, data={"val_split": None})
    with pytest.raises(RequestError, match=r"train.wise_ft needs val pictures, and there are none"):
        finetune(config)
    assert not (tmp_path / "run").exists()


def test_wise_ft__of_a_probe_starts_where_it_ended(pictures: Path, tmp_path: Path) -> None:
    """lp_ft blends with the network whose head the probe has trained, also where it is resumed just there."""
    sections = {
        "tuning": {"mode": "lp_ft", "probe_steps": 2},
        "train": {"steps": 4, "wise_ft": [0.5]},
        "schedule": {"warmup_steps": None},
        "checkpoint": {"every_steps": 1, "keep_last": 9},
    }
    whole = finetune(tiny_config(pictures, tmp_path / "run", **sections))
    probed = load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors")
    start = load_file(tmp_path / "run" / "start.safetensors")
    assert all(torch.equal(start[name], probed[name]) for name in probed)
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    save_start(tmp_path / "run", {name: torch.zeros_like(tensor) for name, tensor in start.items()})
    resumed = finetune(tiny_config(pictures, tmp_path / "run", **sections), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_wise_ft__of_adapters_blends_merged_weights(pictures: Path, tmp_path: Path) -> None:
    """With LoRA the start is the network without adapters, and alpha 0 gives its blocks back."""
    sections = {"tuning": {"mode": "lora", "lora": {"rank": 2}}, "evaluation": {"metric": "loss"}}
    result = finetune(tiny_config(pictures, tmp_path / "run", train={"steps": 2, "wise_ft": [0.0]}, **sections))
    start = load_file(tmp_path / "run" / "start.safetensors")
    assert set(start) == set(result.model.state_dict())
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["wise_ft"]["val"]
    result.model.load_state_dict(start)
    names = Predictor(tmp_path / "run").class_names
    spec = Predictor(tmp_path / "run").preprocess
    predictor = Predictor(result.model, preprocess=spec, class_names=names)
    loss = evaluate(result.model, pictures / "val", predictor=predictor).metrics["loss"]
    assert loss == pytest.approx(rows[0]["metrics"]["loss"], rel=1e-5)
