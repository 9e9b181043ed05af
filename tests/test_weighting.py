"""Weights of pictures in a whole run: a picture of weight 2 trains as the same picture twice, at any processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import make_pictures, run_module, tiny_config

from vit_finetune import finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config

STEPS = 4
WEIGHTS = {"blue/0.png": 2, "red/1.png": 0}  # every other picture weighs 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return six training pictures, a damaged one that weighs much, and a copy of one, in two lists."""
    root = make_pictures(tmp_path_factory.mktemp("weights"), train=2, val=2)
    shutil.copy(root / "train/blue/0.png", root / "train/blue/copy.png")
    (root / "train/blue/broken.png").write_bytes((root / "train/red/0.png").read_bytes()[:2000])
    names = {
        split: sorted(path.relative_to(root) for path in (root / split).rglob("?.png")) for split in ("train", "val")
    }
    weighted, repeated = ["path,label,split,w"], ["path,label,split"]
    for split, paths in names.items():
        for path in paths:
            weight = WEIGHTS.get(f"{path.parent.name}/{path.name}", 1) if split == "train" else ""
            weighted.append(f"{path},{path.parent.name},{split},{weight}")
            if weight != 0:
                repeated.append(f"{path},{path.parent.name},{split}")
    (root / "weighted.csv").write_text("\n".join([*weighted, "train/blue/broken.png,blue,train,5"]))
    (root / "repeated.csv").write_text("\n".join([*repeated, "train/blue/copy.png,blue,train"]))
    return root


def config_of(source: Path, run_dir: Path, batch: int, **data: Any) -> dict[str, Any]:
    """Return a run whose every step sees all pictures as they are."""
    plain = {"scale": [1, 1], "ratio": [1.25, 1.25], "hflip": 0, "color_jitter": 0, "auto_augment": None}
    config = tiny_config(source.parent, run_dir, train={"steps": STEPS, "global_batch_size": batch})
    config["model"]["drop_path_rate"] = 0.0
    config["data"] = {"source": str(source), **plain, **data}
    return config


def losses(run_dir: Path) -> list[float]:
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["split"] == "train"]


def weighted(root: Path, run_dir: Path) -> dict[str, Any]:
    return config_of(root / "weighted.csv", run_dir, 7, weight_column="w", on_bad_image="skip", max_bad_fraction=0.5)


@pytest.fixture(scope="module")
def expected(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of a run without weights, in which one picture is there twice and one is not."""
    run_dir = tmp_path_factory.mktemp("repeated") / "run"
    finetune(config_of(root / "repeated.csv", run_dir, 6))
    return losses(run_dir)


@pytest.mark.parametrize("cache", ["off", "decoded"])
def test_run__weight_two_is_the_picture_twice(root: Path, expected: list[float], cache: str, tmp_path: Path) -> None:
    """Weights 2 and 0 train as the picture twice and no picture, though a skipped one of weight 5 is in the batch."""
    config = weighted(root, tmp_path / "run")
    config["data"] |= {"cache": cache, "cache_dir": str(tmp_path / "cache")}
    finetune(config)
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=2e-5)
    assert len(set(expected)) > 1


@pytest.mark.slow
def test_run__weights_over_two_processes(root: Path, expected: list[float], tmp_path: Path) -> None:
    """Two processes divide by the sum of the weights of both: the same losses."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(weighted(root, tmp_path / "two")))
    done = run_module(["train", str(tmp_path / "recipe.yaml"), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(expected, abs=2e-5)


def test_config__readouts_weigh_alike() -> None:
    """A readout run would not read the weights, so it refuses them."""
    values = {"data": {"source": "a.csv", "weight_column": "w"}, "tuning": {"mode": "readout"}, "train": {"epochs": 1}}
    with pytest.raises(RequestError, match="weighs all pictures alike"):
        Config.load({"model": {"pretrained": None, "name": "vit_tiny_patch16_224"}, "run": {"dir": "r"}, **values})
