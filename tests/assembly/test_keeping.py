"""Whole runs from the cache of decoded pictures: to the byte as without it, alone, together and after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from run_helpers import ROOT, make_pictures, run_module, tiny_config

from vit_finetune import finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config

RESULTS = ("metrics.jsonl", "model/model.safetensors", "predictions.parquet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 42 training and 15 val pictures of 50 x 40 pixels."""
    return make_pictures(tmp_path_factory.mktemp("kept") / "pictures")


@pytest.fixture(scope="module", params=["pil", "torch"])
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return options of the section data, for each way that training pictures go."""
    if request.param == "pil":
        return {"resizer": "pil"}
    return {"resizer": "torch", "working_size": 36, "auto_augment": None, "random_erasing": 0.0, "color_jitter": 0.0}


def recipe(root: Path, run_dir: Path, cache_dir: Path, **data: Any) -> dict[str, Any]:
    """Return a tiny run of eight steps of twelve pictures, which is more than two epochs."""
    return tiny_config(root, run_dir, data={"cache_dir": str(cache_dir), **data})


def assert_same(left: Path, right: Path) -> None:
    """Check that two runs came to the same result, byte for byte."""
    for name in RESULTS:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def test_finetune__cached_is_uncached_to_the_byte(pictures: Path, way: dict[str, Any], tmp_path: Path) -> None:
    """Off, filled, and found again by a second run with workers: one result; the second run decodes nothing."""
    finetune(recipe(pictures, tmp_path / "off", tmp_path / "cache", **way))
    assert not (tmp_path / "cache").exists()
    finetune(recipe(pictures, tmp_path / "filled", tmp_path / "cache", cache="decoded", **way))
    finetune(recipe(pictures, tmp_path / "found", tmp_path / "cache", cache="auto", num_workers=2, **way))
    assert_same(tmp_path / "off", tmp_path / "filled")
    assert_same(tmp_path / "off", tmp_path / "found")
    assert "42 train pictures decoded in" in (tmp_path / "filled" / "run.log").read_text()
    assert "42 train pictures kept in" in (tmp_path / "found" / "run.log").read_text()
    assert "15 val pictures kept in" in (tmp_path / "found" / "run.log").read_text()
    assert "of the training time was waiting for pictures" in (tmp_path / "off" / "run.log").read_text()


def test_finetune__skipped_pictures_from_the_cache(pictures: Path, tmp_path: Path) -> None:
    """Bad pictures are left out and listed alike with and without a cache, and end the run where they must."""
    root = tmp_path / "pictures"
    shutil.copytree(pictures, root)
    for path in (root / "train" / "red" / "3.png", root / "val" / "blue" / "1.png"):
        path.write_bytes(path.read_bytes()[:2000])
    skip = {"on_bad_image": "skip", "max_bad_fraction": 0.2}
    for cache in ("off", "decoded"):
        finetune(recipe(root, tmp_path / cache, tmp_path / "cache", cache=cache, **skip))
    assert_same(tmp_path / "off", tmp_path / "decoded")
    listed = [(tmp_path / name / "bad_images.jsonl").read_text() for name in ("off", "decoded")]
    assert listed[0] == listed[1]
    assert listed[0].count("\n") == 2
    with pytest.raises(RequestError, match=r"cannot read .*[31]\.png"):
        finetune(recipe(root, tmp_path / "strict", tmp_path / "other", cache="decoded"))


def test_finetune__auto_says_why_it_keeps_nothing(pictures: Path, tmp_path: Path) -> None:
    """Without room, or without a second visit, auto reads the files; asked for, no room is an error with figures."""
    small = {"cache": "auto", "cache_limit_gb": 1e-6}
    finetune(recipe(pictures, tmp_path / "small", tmp_path / "cache", **small))
    assert "cache    off: the decoded pictures take" in (tmp_path / "small" / "run.log").read_text()
    once = recipe(pictures, tmp_path / "once", tmp_path / "cache", cache="auto")
    finetune({**once, "train": {**once["train"], "steps": 3}})
    assert "cache    off: no picture is visited twice" in (tmp_path / "once" / "run.log").read_text()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(RequestError, match=r"decoded pictures take .* GB, data\.cache_limit_gb is"):
        finetune(recipe(pictures, tmp_path / "none", tmp_path / "cache", cache="decoded", cache_limit_gb=1e-6))


def test_finetune__working_size_below_the_networks_is_refused(pictures: Path, tmp_path: Path) -> None:
    """Pictures smaller than what the network takes would only be enlarged again."""
    with pytest.raises(RequestError, match="data.working_size is 20, the network takes 32"):
        finetune(recipe(pictures, tmp_path / "run", tmp_path / "cache", working_size=20))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "tuning", "words"),
    [
        ({"draft": True}, {}, "data.draft reduces to data.working_size"),
        ({"cache": "decoded"}, {"mode": "readout"}, "tuning.mode readout keeps features"),
    ],
)
def test_config__refuses_what_would_do_nothing(data: dict[str, Any], tuning: dict[str, Any], words: str) -> None:
    """Options that nothing would read in this combination are refused."""
    values = recipe(Path("x"), Path("y"), Path("z"), **data)
    with pytest.raises(RequestError, match=words):
        Config.load({**values, "tuning": tuning})


@pytest.mark.slow
def test_finetune__killed_while_it_fills_and_again_while_it_trains(pictures: Path, tmp_path: Path) -> None:
    """SIGKILL at two moments, then --resume from the cache: byte for byte the run without a cache."""
    run_dir = tmp_path / "killed"
    file = tmp_path / "recipe.yaml"
    settings = recipe(pictures, run_dir, tmp_path / "cache", cache="decoded")
    settings["train"]["steps"] = 24
    file.write_text(yaml.safe_dump(settings))
    signs = (tmp_path / "cache", run_dir / "checkpoints" / "LATEST")
    for number, sign in enumerate(signs):
        command = [sys.executable, "-m", "vit_finetune", "train", str(file), *(["--resume"] if number else [])]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (run_dir / "metrics.json").exists(), "the run ended before it was killed"
    finetune(settings, resume=True)
    plain = recipe(pictures, tmp_path / "plain", tmp_path / "cache")
    finetune({**plain, "train": settings["train"]})
    assert_same(run_dir, tmp_path / "plain")


@pytest.mark.slow
def test_finetune__two_processes_fill_one_cache(pictures: Path, tmp_path: Path) -> None:
    """Two processes decode a half each; the entry serves one process, and the result is that of one."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(pictures, tmp_path / "two", tmp_path / "cache", cache="decoded")))
    done = run_module(["train", str(file), "--num-processes", "2"])
    assert done.returncode == 0, done.stderr
    finetune(recipe(pictures, tmp_path / "one", tmp_path / "cache", cache="decoded"))
    assert "42 train pictures kept in" in (tmp_path / "one" / "run.log").read_text()
    finetune(recipe(pictures, tmp_path / "off", tmp_path / "cache"))
    assert_same(tmp_path / "one", tmp_path / "off")
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
