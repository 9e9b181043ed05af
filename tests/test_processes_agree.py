"""One run on 1, 2 and 3 real processes is the same run: its samples, its weights, its figures, whole or in shards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes_program import CASES, NUM_STEPS, Case
from run_helpers import ROOT, everything

pytestmark = pytest.mark.slow
WORLDS = (2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what `processes_program.py` left: 1.pt, 2.pt, 3.pt and the folders of whole runs."""
    folder = tmp_path_factory.mktemp("worlds")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "processes_program.py"), str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def worlds(folder: Path) -> dict[int, dict[Any, Any]]:
    """Return number of processes -> case -> what it came to."""
    return {world: torch.load(folder / f"{world}.pt", weights_only=False) for world in (1, *WORLDS)}


def compared(worlds: dict[int, dict[Any, Any]], world: int, case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a case on one process and on several; one process has no shards and recomputes no blocks."""
    single = case._replace(strategy="ddp", cpu_offload=False, grad_checkpointing="elementwise")
    return worlds[1][single], worlds[world][case]


def losses(journal: str, split: str) -> list[float]:
    """Return the loss of each row of a split."""
    rows = map(json.loads, journal.splitlines())
    return [row["loss"] for row in rows if row["split"] == split]


COMPARED = [pytest.param(world, case, id=f"{world}-{case}") for world in WORLDS for case in CASES[world]]


@pytest.mark.parametrize(("world", "case"), COMPARED)
def test_processes__see_the_same_samples(worlds: dict[int, dict[Any, Any]], world: int, case: Case) -> None:
    """Each step has the same sample at each place of the global batch, with the same augmentation, once."""
    one, several = compared(worlds, world, case)
    assert several["seen"] == one["seen"]
    assert [place[:2] for place in one["seen"]] == [(step, place) for step in range(NUM_STEPS) for place in range(18)]


@pytest.mark.parametrize(("world", "case"), COMPARED)
def test_processes__learn_the_same(worlds: dict[int, dict[Any, Any]], world: int, case: Case) -> None:
    """Weights, their average and the optimizer's moments to 1e-12 in float64, the loss curve to 1e-5 in float32."""
    one, several = compared(worlds, world, case)
    for split in ("train", "val"):
        np.testing.assert_allclose(losses(several["journal"], split), losses(one["journal"], split), rtol=0, atol=1e-5)
    assert len(losses(one["journal"], "train")) == NUM_STEPS
    if case.dtype != torch.float64:
        return
    for what in ("weights", "average", "moments"):
        assert several[what].keys() == one[what].keys()
        for name, tensor in one[what].items():
            assert (several[what][name] - tensor).abs().max() <= 1e-12, (what, name)


@pytest.mark.parametrize(("world", "case"), COMPARED)
def test_processes__count_the_same(worlds: dict[int, dict[Any, Any]], world: int, case: Case) -> None:
    """Every picture is scored once, in data set order, also where processes have none; raw and averaged weights."""
    one, several = compared(worlds, world, case)
    assert len(one["results"]) == len(several["results"]) == 2
    for alone, together in zip(one["results"], several["results"], strict=True):
        assert together.num_samples == alone.num_samples == case.size
        assert together.per_class == alone.per_class
        assert together.indices.tolist() == list(range(case.size))
        assert together.labels.tolist() == alone.labels.tolist()
        np.testing.assert_allclose(together.probabilities, alone.probabilities, atol=1e-5)
        for name in ("accuracy", "macro_accuracy", "macro_f1"):
            assert together.metrics[name] == alone.metrics[name], name


@pytest.mark.parametrize("world", WORLDS)
def test_sharded__a_nan_in_one_process_is_told_by_all(worlds: dict[int, dict[Any, Any]], world: int) -> None:
    """The step is repeated by all processes, none waits for another, and the picture is named."""
    said = worlds[world]["nan"]
    assert said.startswith("step 2 stopped: loss nan")
    assert f"process {world - 1}: the output of" in said
    assert "there is no whole checkpoint yet" in said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes__save_behind_training_as_at_once(folder: Path, strategy: str) -> None:
    """Checkpoints, pointers and rows written behind training are byte for byte those written at once."""
    at_once, behind = (everything(folder / f"{strategy}_{name}") for name in ("at_once", "behind"))
    for files in (at_once, behind):
        del files["timing.jsonl"]
    assert at_once == behind
    assert {name for name in behind if name.startswith("checkpoints/step-00000004/")} == {
        f"checkpoints/step-00000004/{name}"
        for name in ("model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "SHA256SUMS")
    }


def test_two_processes__a_disk_that_fills_behind_training_ends_both(worlds: dict[int, dict[Any, Any]]) -> None:
    """The process that writes learns it behind training; both end with its line, and neither waits for the other."""
    first, second = worlds[2]["full disk"]
    assert "cannot write the checkpoint" in first
    assert "step-00000002" in first
    assert "No space left on device" in first
    assert second == first


@pytest.mark.parametrize("name", ["three", "sharded", "sharded_then_ddp", "sharded_then_fsdp"])
def test_finetune__whole_runs_agree(folder: Path, name: str) -> None:
    """From pictures to metrics.json: three processes, two in shards, and three that go on where two in shards were."""
    for split in ("train", "val"):
        alone, several = ((folder / run / "metrics.jsonl").read_text() for run in ("one", name))
        np.testing.assert_allclose(losses(several, split), losses(alone, split), rtol=0, atol=1e-5)
    alone, several = (json.loads((folder / run / "metrics.json").read_text()) for run in ("one", name))
    assert several["per_class"] == alone["per_class"]
    assert several["best_step"] == alone["best_step"]
    assert several["num_samples"] == 9


def test_finetune__a_sharded_run_leaves_what_others_leave(folder: Path) -> None:
    """Checkpoints and model folder hold the same tensors as those of one process, whole."""
    from safetensors.torch import load_file

    for file in ("checkpoints/step-00000006/model.safetensors", "checkpoints/step-00000006/ema.safetensors"):
        alone, sharded = (load_file(folder / run / file) for run in ("one", "sharded"))
        assert {name: tensor.shape for name, tensor in sharded.items()} == {
            name: tensor.shape for name, tensor in alone.items()
        }
    alone, sharded = (set(load_file(folder / run / "model" / "model.safetensors")) for run in ("one", "sharded"))
    assert alone == sharded
    for name in ("going on after step 2", "2 processes before, 3 now"):
        assert name in (folder / "sharded_then_ddp" / "run.log").read_text()
