"""Finding the largest micro-batch: by trial where memory may run out, by measuring where it must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from run_helpers import ROOT, make_pictures, tiny_config
from training_helpers import plan_of, tiny_vit

from vit_finetune import finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.training.memory import find_micro_batch, fits, largest_by_doubling, largest_by_halving


@pytest.mark.parametrize(
    ("room", "found", "tried"), [(100, 64, [64]), (9, 8, [64, 32, 16, 8]), (1, 1, None), (0, 0, None)]
)
def test_halving__takes_the_first_that_fits(room: int, found: int, tried: list[int] | None) -> None:
    """From 64 down by halves; 0 says that not even one fits."""
    sizes: list[int] = []

    def fits_in(size: int) -> bool:
        sizes.append(size)
        return size <= room

    assert largest_by_halving(64, fits_in) == found
    assert tried is None or sizes == tried


@pytest.mark.parametrize(
    ("room", "found", "measured"),
    [
        (1000, 16, [1, 2, 4, 8, 16]),
        (90, 8, [1, 2, 4, 8]),
        (89, 4, [1, 2, 4]),
        (35, 2, [1, 2]),
        (15, 1, [1]),
        (14, 0, [1]),
    ],
)
def test_doubling__never_measures_what_would_not_fit(room: int, found: int, measured: list[int]) -> None:
    """A pass takes 5 + 10 a picture: sizes are doubled only while twice the last one's memory has room."""
    sizes: list[int] = []

    def measure(size: int) -> int:
        sizes.append(size)
        return 5 + 10 * size

    assert largest_by_doubling(16, measure, room) == found
    assert sizes == measured


def test_fits__is_about_memory_only() -> None:
    """A pass that runs out of memory does not fit; another error is not taken for one."""

    def attempt(size: int) -> None:
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if size == 3:
            raise RuntimeError("shapes differ")

    assert fits(attempt, 2, held=10, device="cpu")
    assert not fits(attempt, 4, held=10, device="cpu")
    assert not fits(attempt, 2, held=2**60, device="cpu")
    with pytest.raises(RuntimeError, match="shapes differ"):
        fits(attempt, 3, held=10, device="cpu")


def test_find__leaves_the_network_as_it_was() -> None:
    """The trial leaves weights, mode and gradients alone; a CPU keeps its size where there is room or no limit."""
    model, plan = tiny_vit().eval(), plan_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerator = Accelerator(cpu=True)
    for limit in (None, 2**40):
        found = find_micro_batch(model, plan, accelerator=accelerator, image_size=(3, 32, 32), max_memory=limit)
        assert found == plan
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_find__too_little_for_one_picture() -> None:
    """A limit below what the process already holds is refused with what to change."""
    with pytest.raises(RequestError, match=r"one picture at a time does not fit into train.max_memory \(1,000 bytes\)"):
        find_micro_batch(
            tiny_vit(), plan_of(), accelerator=Accelerator(cpu=True), image_size=(3, 32, 32), max_memory=1000
        )


MEASURE = """
import re, sys
from pathlib import Path
import psutil, torch
from accelerate import Accelerator
sys.path.insert(0, "tests")
from training_helpers import plan_of
from vit_finetune import create_model
from vit_finetune.training.memory import find_micro_batch

torch.set_num_threads(1)
size = {"depth": 4, "embed_dim": 192, "num_heads": 3, "img_size": 224}
model = create_model("vit_tiny_patch16_224", num_classes=3, **size)
model(torch.zeros(1, 3, 224, 224)).sum().backward()
limit = psutil.Process().memory_info().rss + int(sys.argv[1]) * 10**6
plan = plan_of(global_batch_size=64, per_device_batch_size=64)
plan = find_micro_batch(
    model, plan, accelerator=Accelerator(cpu=True), image_size=(3, 224, 224), max_memory=limit, states_per_parameter=0
)
for _ in range(2):
    model(torch.zeros(plan.per_device_batch_size, 3, 224, 224)).sum().backward()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
print(plan.per_device_batch_size, limit, int(peak) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; ru_maxrss counts the parent of a process, too")
def test_find__the_limit_holds_for_the_whole_process() -> None:
    """In a process of its own, its peak as the system tells it stays below the limit, 5 % for what is missed."""
    sizes = []
    for megabytes in (150, 400):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(megabytes)], capture_output=True, text=True, cwd=ROOT, check=True
        )
        size, limit, peak = map(int, done.stdout.split())
        assert peak <= 1.05 * limit
        sizes.append(size)
    assert 1 <= sizes[0] < sizes[1] < 64


def test_max_memory__is_found_written_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The found size stands in plan.json beside the whole global batch; a resumed run reads it and measures nothing."""
    from vit_finetune.training import memory

    root = make_pictures(tmp_path / "pictures", train=5, val=2)
    config = tiny_config(root, tmp_path / "run", train={"steps": 2, "max_memory": "1GB"})
    config["train"]["per_device_batch_size"] = "auto"
    monkeypatch.setattr(memory, "_largest_in_process", lambda *_: 3)
    result = finetune(config)
    told = json.loads((result.run_dir / "plan.json").read_text())
    assert (told["per_device_batch_size"], told["gradient_accumulation_steps"], told["global_batch_size"]) == (3, 4, 12)
    assert "1 process(es) x 3 pictures x 4 accumulated" in (result.run_dir / "run.log").read_text()

    def measured(*_: object) -> int:
        raise AssertionError("measured again")

    monkeypatch.setattr(memory, "_largest_in_process", measured)
    finetune(config, resume=True)
    assert json.loads((result.run_dir / "plan.json").read_text())["per_device_batch_size"] == 3
