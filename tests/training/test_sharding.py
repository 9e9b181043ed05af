"""Shards: what is refused, and that a network which is not sharded goes through every function as it is.

Sharded networks need several processes: `tests/test_processes_agree.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from run_helpers import tiny_config
from training_helpers import copied, pictures, plan_of, tiny_vit

from vit_finetune import finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config
from vit_finetune.training.micro_batches import MicroBatches
from vit_finetune.training.sharding import (
    check_strategy,
    in_step,
    is_sharded,
    is_wanted,
    load_whole,
    local,
    part_like,
    whole,
)


def on(kind: str, precision: str = "no") -> Any:
    """Return what an Accelerator says of its device."""
    return SimpleNamespace(device=torch.device(kind), mixed_precision=precision)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_check_strategy__whole_networks_are_fine_everywhere(strategy: str) -> None:
    """Nothing but fsdp is looked at."""
    check_strategy(strategy, on("cpu"))
    assert not is_wanted(strategy)


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_check_strategy__needs_cuda(kind: str) -> None:
    """On a CPU Accelerate would train DDP without a word: refused with what computes the same."""
    with pytest.raises(RequestError) as error:
        check_strategy("fsdp", on(kind))
    assert str(error.value) == (
        f"run.strategy fsdp needs CUDA devices, and this run is on {kind}; use run.strategy ddp, which computes the "
        "same"
    )


def test_check_strategy__needs_processes() -> None:
    """A single process, started by hand, has nobody to share with."""
    assert not is_wanted("fsdp")
    with pytest.raises(RequestError, match="this is a single one; start with `vit-finetune train"):
        check_strategy("fsdp", on("cuda"))


def test_check_strategy__needs_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 is refused with what can be."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    check_strategy("fsdp", on("cuda", "bf16"))
    with pytest.raises(RequestError, match="works in bf16 or full precision, and this run is in fp16"):
        check_strategy("fsdp", on("cuda", "fp16"))


def test_finetune__refuses_shards_on_a_cpu(tmp_path: Path) -> None:
    """Refused before anything is looked for or written."""
    config = tiny_config(tmp_path / "no_pictures", tmp_path / "run", run={"strategy": "fsdp", "device": "cpu"})
    with pytest.raises(RequestError, match="run.strategy fsdp needs CUDA devices, and this run is on cpu"):
        finetune(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"tuning": {"mode": "readout"}}, "tuning.mode readout, whose network"),
        ({"tuning": {"mode": "lp_ft", "probe_steps": 1}}, "tuning.mode lp_ft, whose network"),
        ({"tuning": {"mode": "lora", "lora": {"rank": 2}}}, "tuning.mode lora, whose network"),
        ({"train": {"compile": True, "steps": 1}}, "train.compile"),
        ({"train": {"max_memory": "1GiB", "steps": 1, "per_device_batch_size": "auto"}}, "train.max_memory, since"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name lion; use adamw or sgd"),
    ],
)
def test_config__refuses_what_cannot_be_sharded(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    """What no test has run in shards is refused with its name."""
    config = tiny_config(tmp_path, tmp_path / "run", run={"strategy": "fsdp"}, **sections)
    with pytest.raises(RequestError, match=f"run.strategy fsdp does not work with {message}"):
        Config.load(config)


def test_config__offload_is_of_shards(tmp_path: Path) -> None:
    """No option without effect."""
    with pytest.raises(RequestError, match="run.fsdp_cpu_offload needs run.strategy fsdp"):
        Config.load(tiny_config(tmp_path, tmp_path / "run", run={"fsdp_cpu_offload": True}))


def test_whole_networks__go_through_unchanged() -> None:
    """One code path: whole tensors are gathered, loaded and taken part of as they are."""
    model = tiny_vit()
    before = copied(model)
    assert not is_sharded(model)
    assert all(whole(model.state_dict())[name] is not None for name in before)
    assert whole(before, keep=False) == {}
    load_whole(model, {name: tensor + 1 for name, tensor in before.items()})
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in copied(model).items())
    row = torch.arange(3.0)
    assert torch.equal(part_like(row, torch.zeros(3)), row)
    assert local(row) is row
    assert list(in_step([1, 2], model, Accelerator(cpu=True), image_size=(3, 32, 32))) == [1, 2]


@pytest.mark.parametrize(
    ("count", "processes", "size", "least", "sizes"),
    [
        (13, 2, 3, 1, [3, 3, 0]),  # 6 here, 7 there: three micro-batches
        (18, 2, 4, 2, [4, 4, 0]),  # 8 here, 10 there: pairs stay together
        (12, 2, 3, 1, [3, 3]),
    ],
)
def test_as_many__in_step(count: int, processes: int, size: int, least: int, sizes: list[int]) -> None:
    """A process with fewer pictures adds empty micro-batches, so that all do equally many passes."""
    plan = plan_of(global_batch_size=count, num_processes=processes, per_device_batch_size=size)
    mine = pictures(0, sum(sizes))
    batches = [mine.part(slice(start, start + size)) for start in range(0, len(mine), size)]
    found = MicroBatches(plan, least=least, in_step=True).as_many(batches)
    assert [len(batch) for batch in found] == sizes
    assert MicroBatches(plan, least=least).as_many(batches) is batches


def test_in_step__is_not_rehearsed() -> None:
    """A pass that fails in one process would halt the others, so there is none to find that out."""
    assert MicroBatches(plan_of(), in_step=True).proven
    assert not MicroBatches(plan_of()).proven
