"""One recipe across two launchers, as across two machines: torchrun on two addresses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_helpers import ROOT, make_pictures, tiny_config

from vit_finetune import finetune

pytestmark = pytest.mark.slow
PATIENCE = 400.0  # until a run of two processes has ended, on a busy machine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pictures, and beside them the run of one process that all others have to equal."""
    root = tmp_path_factory.mktemp("machines")
    make_pictures(root / "pictures", train=4, val=3)
    recipe_of(root, "one")
    finetune(root / "one.yaml")
    return root


def recipe_of(root: Path, name: str) -> Path:
    """Write a recipe with noise and augmentation whose run is root/NAME."""
    train = {"steps": 4, "mixup_alpha": 0.8, "global_batch_size": 12, "per_device_batch_size": 4}
    config = tiny_config(root / "pictures", root / name, train=train, evaluation={"every_steps": 2})
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return root / f"{name}.yaml"


def assert_equals_one(root: Path, name: str) -> None:
    """Check the losses to 1e-5 and every count exactly."""
    rows = [
        [json.loads(line) for line in (root / run / "metrics.jsonl").read_text().splitlines()] for run in ("one", name)
    ]
    assert [(row["step"], row["split"]) for row in rows[0]] == [(row["step"], row["split"]) for row in rows[1]]
    np.testing.assert_allclose([row["loss"] for row in rows[1]], [row["loss"] for row in rows[0]], rtol=0, atol=1e-5)
    figures = [json.loads((root / run / "metrics.json").read_text()) for run in ("one", name)]
    assert figures[0]["per_class"] == figures[1]["per_class"]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(recipe: Path, node: int, port: int) -> subprocess.Popen[str]:
    """Start one of two launchers, each with one process and an address of its own."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run"]
    where += ["--local-addr", f"127.0.0.{node + 1}", "--nnodes", "2", "--nproc-per-node", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, "-m", "vit_finetune", "train", str(recipe)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )


def test_torchrun__two_launchers_train_one_recipe(root: Path) -> None:
    """Two launchers on two loopback addresses with a process each: the run of one process."""
    port, recipe = free_port(), recipe_of(root, "two")
    launchers = [torchrun(recipe, node, port) for node in (0, 1)]
    said = [launcher.communicate(timeout=PATIENCE)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert sum(text.count("plan     ") for text in said) == 2, "only the first process speaks"
    assert_equals_one(root, "two")
