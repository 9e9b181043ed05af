"""One recipe across two launchers, as across two machines: torchrun on two addresses, and the Slurm script."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_helpers import ROOT, make_pictures, tiny_config

from vit_finetune import finetune

pytestmark = pytest.mark.slow
PATIENCE = 400.0  # until a run of two processes has ended, on a busy machine

# In the place of Slurm's srun, which starts a task on every node; here each of them is told that it is on its own.
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
pids=()
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=0 "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1" in
    show) printf 'localhost\\nother\\n' ;;
    requeue) echo "requeue $2" >> "$REQUEUED" ;;
esac
"""


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


def torchrun(recipe: Path, node: int, port: int, *flags: str) -> subprocess.Popen[str]:
    """Start one of two launchers, each with one process and an address of its own."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run"]
    where += ["--local-addr", f"127.0.0.{node + 1}", "--nnodes", "2", "--nproc-per-node", "1"]
    where += ["--rdzv-conf", f"is_host={int(node == 0)}"]  # by address alone either could be, as both are this machine
    command = [sys.executable, "-m", "torch.distributed.run", *where, "-m", "vit_finetune", "train", str(recipe)]
    return subprocess.Popen(
        [*command, *flags],
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


def test_slurm_script__trains_one_recipe_and_comes_back(root: Path, tmp_path: Path) -> None:
    """recipes/slurm.sh with two tasks: ended by its time limit it asks for its place again, and then ends the run."""
    recipe = recipe_of(root, "slurm")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "vit-finetune").write_text(f'#!/bin/bash\nexec {sys.executable} -m vit_finetune "$@"\n')
    (tmp_path / "vit-finetune").chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_JOB_NODELIST": "localhost,other",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
    }
    codes = []
    for flags in (["--time-limit", "1s"], []):
        done = subprocess.run(
            ["bash", str(ROOT / "recipes" / "slurm.sh"), str(recipe), *flags],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **variables},
            timeout=PATIENCE,
            check=False,
        )
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr, done.stderr
    assert codes == [3, 0]
    assert (tmp_path / "requeued").read_text() == f"requeue {variables['SLURM_JOB_ID']}\n"
    assert_equals_one(root, "slurm")


def test_torchrun__a_machine_that_is_lost_ends_the_other(root: Path) -> None:
    """SIGKILL of one machine's launcher and process: the other one ends within a minute, not with exit code 0."""
    import psutil

    port, recipe = free_port(), recipe_of(root, "lost")
    launchers = [torchrun(recipe, node, port, "train.steps=100000", "evaluation.every_steps=100000") for node in (0, 1)]
    journal, deadline = root / "lost" / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = psutil.Process(launchers[1].pid)
    for process in (*ended.children(recursive=True), ended):
        process.kill()
    launchers[1].communicate()
    said, _ = launchers[0].communicate(timeout=60)
    assert launchers[0].returncode != 0
    assert said.count("error: stopped, because another process of this run ended") == 1, said
