"""Runs that keep what their frozen half gives: the plain run's result, resumed and shared alike, with fewer passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from run_helpers import make_pictures, run_module, tiny_config
from safetensors.torch import load_file
from training_helpers import plan_of

from vit_finetune import finetune
from vit_finetune.assembly.frozen import KeptWorker, is_still, views_in
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.data.workers import Request
from vit_finetune.training import Stage

MODES: dict[str, dict[str, Any]] = {
    "last_n": {"mode": "last_n", "num_blocks": 1},
    "lp_ft": {"mode": "lp_ft", "probe_steps": 4, "probe_lr": 1e-2},
}
STILL = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0, "color_jitter": 0, "auto_augment": None, "random_erasing": 0}


def config_of(pictures: Path, run_dir: Path, mode: str, views: int | str, **sections: Any) -> dict[str, Any]:
    """Return a run of two epochs of three steps."""
    values: dict[str, Any] = {
        "tuning": {**MODES[mode], "cache_prefix": views},
        "train": {"steps": 6, "global_batch_size": 6, "per_device_batch_size": 3, "ema_decay": 0.5},
        "evaluation": {"every_steps": 2},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
    }
    return tiny_config(pictures, run_dir, **(values | sections))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", train=6, val=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep features beside the runs of a test."""
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def figures(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def check_equal(first: Path, second: Path) -> None:
    """Hold figures and final weights of two runs against each other, up to rounding."""
    for mine, other in zip(figures(first), figures(second), strict=True):
        assert (mine["step"], mine["split"]) == (other["step"], other["split"])
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
    ours, theirs = (load_file(run_dir / "model" / "model.safetensors") for run_dir in (first, second))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("mode", list(MODES))
def test_frozen_work__as_many_views_as_epochs_are_the_plain_run(
    pictures: Path, tmp_path: Path, cache: Path, mode: str
) -> None:
    """With a view an epoch, augmented, figures and weights are those of the run without; a run that was killed, and
    finds nothing kept, goes on bit for bit.
    """
    finetune(config_of(pictures, tmp_path / "plain", mode, "off"))
    whole = tmp_path / "kept"
    finetune(config_of(pictures, whole, mode, 2))
    check_equal(whole, tmp_path / "plain")
    assert "train view 1: computed up to block" in (whole / "run.log").read_text()
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("model", "metrics.json", "*.parquet"))
    shutil.copy(whole / "manifest.parquet", resumed)
    for step in range(3, 7):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(cache)
    finetune(config_of(pictures, resumed, mode, 2), resume=True)
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    last = "checkpoints/step-00000006/SHA256SUMS"
    assert (resumed / last).read_bytes() == (whole / last).read_bytes()


def test_frozen_work__two_processes_are_one(pictures: Path, tmp_path: Path) -> None:
    """Two processes that share what is kept come to the result of one."""
    for name, more in (("one", []), ("two", ["--num-processes", "2"])):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(config_of(pictures, tmp_path / name, "last_n", 1)))
        done = run_module(["train", str(recipe), *more])
        assert done.returncode == 0, done.stderr
    check_equal(tmp_path / "two", tmp_path / "one")


def test_frozen_work__auto_keeps_where_nothing_varies(pictures: Path, tmp_path: Path) -> None:
    """auto keeps a view where the data section varies nothing, and nothing else."""
    for name, data in (("still", STILL), ("varied", {})):
        finetune(config_of(pictures, tmp_path / name, "last_n", "auto", data={"root": str(pictures), **data}))
    assert "frozen   train view 0: computed" in (tmp_path / "still" / "run.log").read_text()
    assert "frozen   train view" not in (tmp_path / "varied" / "run.log").read_text()


def test_frozen_work__refusals(pictures: Path, tmp_path: Path) -> None:
    """Views where everything trains, mixed pixels and skipped pictures are refused before anything is written."""
    run_dir = tmp_path / "run"
    with pytest.raises(RequestError, match="cache_prefix 1 keeps what frozen blocks give"):
        finetune(config_of(pictures, run_dir, "last_n", 1, tuning={"mode": "full", "cache_prefix": 1}))
    skipping = {"root": str(pictures), "on_bad_image": "skip"}
    for section, values in (("train", {"steps": 1, "mixup_alpha": 0.8}), ("data", skipping)):
        with pytest.raises(RequestError, match="cache_prefix keeps what the network makes of whole pictures"):
            Config.load(config_of(pictures, run_dir, "last_n", 1, **{section: values}))
    assert not run_dir.exists()


def test_views__follow_the_epochs_of_a_stage() -> None:
    """A stage computes the views that its epochs see, at most as many as are kept; a balanced order may need all."""
    plan = plan_of(num_train=16, global_batch_size=8, num_steps=10, stages=(Stage(), Stage(first_step=4)))
    assert views_in(plan.stages[0], plan, 8, balanced=False) == [0, 1]
    assert views_in(plan.stages[1], plan, 8, balanced=False) == [2, 3, 4]
    assert views_in(plan.stages[1], plan, 2, balanced=False) == [0, 1]
    assert views_in(plan.stages[0], plan, 3, balanced=True) == [0, 1, 2]


def test_kept_worker__a_second_visit_in_an_epoch_sees_another_view() -> None:
    """Rows come from the view of the epoch, and of the next one where a picture comes twice in it."""
    views = {view: torch.full((4, 2), float(view)).numpy() for view in range(3)}
    images = SimpleNamespace(labels=torch.arange(4).numpy())
    worker = KeptWorker(images, None, 0, views=views, num_views=3)
    epochs = torch.tensor([0, 1, 1 + (1 << 32), 5]).numpy()
    result: Any = worker[Request(0, epochs, torch.tensor([3, 2, 2, 0]).numpy(), 0, is_last=True)]
    assert result.batch.images[:, 0].tolist() == [0, 1, 2, 2]
    assert result.batch.labels.tolist() == [3, 2, 2, 0]


def test_still__is_a_data_section_that_varies_nothing() -> None:
    """Any one thing that varies pictures makes a section not still."""
    still = Config.load({"data": {"root": "x", **STILL}, "model": {"pretrained": "demo"}, "train": {"steps": 1}}).data
    assert is_still(still)
    for key, value in (("hflip", 0.5), ("scale", (0.5, 1.0)), ("auto_augment", "randaugment")):
        assert not is_still(still.model_copy(update={key: value}))
