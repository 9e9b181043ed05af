"""Starting: device, precision, threads, and an environment that contradicts the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.common.machine import num_cores
from vit_finetune.training import on_main, resolve_device, set_threads, start_accelerator
from vit_finetune.training.processes import check_shared, gathered_lists, resolve_precision


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    """Make torch see these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


def start(tmp_path: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "device": "cpu",
        "mixed_precision": "auto",
        "trackers": (),
        "run_dir": tmp_path / "run",
        "deterministic": False,
    }
    return start_accelerator(**(values | changes))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a plain process, whatever started the tests."""
    for name in ("MIXED_PRECISION", "GRADIENT_ACCUMULATION_STEPS", "USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM"):
        monkeypatch.delenv(f"ACCELERATE_{name}", raising=False)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("there", "asked", "device"),
    [
        ({}, "auto", "cpu"),
        ({"mps": True}, "auto", "mps"),
        ({"cuda": True}, "auto", "cuda"),
        ({"cuda": True, "mps": True}, "auto", "cuda"),
        ({"cuda": True}, "cpu", "cpu"),
        ({"mps": True}, "mps", "mps"),
    ],
)
def test_resolve_device__finds(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, bool], asked: str, device: str
) -> None:
    """auto takes the accelerator that is there, else the CPU; a device asked for is taken where it is there."""
    machine(monkeypatch, **there)
    assert resolve_device(asked) == device


@pytest.mark.parametrize(
    ("there", "asked", "message"),
    [
        ({}, "cuda", "run.device 'cuda' is not on this machine; there is cpu"),
        ({"cuda": True}, "mps", "run.device 'mps' is not on this machine; there is cpu, cuda"),
    ],
)
def test_resolve_device__refuses(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, bool], asked: str, message: str
) -> None:
    """A device that is not there is refused with those that are."""
    machine(monkeypatch, **there)
    with pytest.raises(RequestError) as error:
        resolve_device(asked)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("asked", "kind", "bf16", "precision"),
    [
        ("auto", "cpu", True, "no"),
        ("auto", "mps", True, "no"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("no", "cuda", True, "no"),
        ("bf16", "cpu", False, "bf16"),
        ("fp16", "cuda", True, "fp16"),
    ],
)
def test_resolve_precision__finds(
    monkeypatch: pytest.MonkeyPatch, asked: str, kind: str, bf16: bool, precision: str
) -> None:
    """auto is bf16 where CUDA has it in hardware, fp16 on other CUDA devices, full precision elsewhere."""
    machine(monkeypatch, cuda=kind == "cuda", bf16=bf16)
    assert resolve_precision(asked, kind) == precision


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_resolve_precision__fp16_needs_cuda(kind: str) -> None:
    """fp16 without CUDA is refused with what is possible."""
    with pytest.raises(RequestError) as error:
        resolve_precision("fp16", kind)
    assert str(error.value) == f"train.mixed_precision fp16 needs a CUDA device, this run is on {kind}; use bf16 or no"


def test_start_accelerator__obeys_the_recipe(tmp_path: Path) -> None:
    """On a CPU there is one process, full precision, and accumulation is left to the loop; nothing is written."""
    accelerator = start(tmp_path)
    assert accelerator.device.type == "cpu"
    assert accelerator.mixed_precision == "no"
    assert accelerator.num_processes == 1
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.scaler is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value", "asked", "message"),
    [
        (
            "ACCELERATE_MIXED_PRECISION",
            "bf16",
            "no",
            "ACCELERATE_MIXED_PRECISION is bf16, the recipe's train.mixed_precision is no; make them agree",
        ),
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "4",
            "auto",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 4; accumulation follows from train.global_batch_size and "
            "train.per_device_batch_size, so leave it at 1",
        ),
        (
            "ACCELERATE_USE_FSDP",
            "true",
            "auto",
            "ACCELERATE_USE_FSDP is true, but how processes share a network is the recipe's run.strategy (auto, ddp or "
            "fsdp); leave it out of Accelerate's configuration",
        ),
    ],
)
def test_start_accelerator__refuses_a_contradicting_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, asked: str, message: str
) -> None:
    """A launcher's environment that says something else than the recipe is an error that names both."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(RequestError) as error:
        start(tmp_path, mixed_precision=asked)
    assert str(error.value) == message


@pytest.mark.parametrize(("told", "asked"), [("no", "bf16"), ("bf16", "bf16"), ("bf16", "auto"), ("no", "auto")])
def test_start_accelerator__takes_an_environment_that_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, asked: str
) -> None:
    """The launcher's default "no", the same word, and a recipe's auto are no contradiction; the recipe decides."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert start(tmp_path, mixed_precision=asked).mixed_precision == ("bf16" if asked == "bf16" else "no")


def test_start_accelerator__missing_tracker(tmp_path: Path) -> None:
    """A tracker whose package is missing is refused before the run, with what to install."""
    with pytest.raises(RequestError) as error:
        start(tmp_path, trackers=("tensorboard", "no_such_tracker"))
    assert str(error.value) == ("run.trackers names no_such_tracker, not installed here; pip install no_such_tracker")


def test_set_threads__number_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is set as it is; auto is this process's share of the cores, at least one."""
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == torch.get_num_threads() == 2
        assert set_threads("auto") == torch.get_num_threads() == num_cores()
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(1000 * num_cores()))
        assert set_threads("auto") == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_on_main__one_process(tmp_path: Path) -> None:
    """With one process the work is done here, and its error is raised here."""
    accelerator = start(tmp_path)
    assert on_main(accelerator, lambda: 5) == 5
    assert gathered_lists(accelerator, ["a"]) == ["a"]

    def refuse() -> None:
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"):
        on_main(accelerator, refuse)


def test_check_shared__names_who_does_not_see_the_folder(tmp_path: Path) -> None:
    """A file that a process cannot see is told with its number; one that is there is no reason to wait."""
    accelerator = start(tmp_path)
    (tmp_path / "there").touch()
    check_shared(accelerator, tmp_path / "there")
    with pytest.raises(
        RequestError, match="process 0 of this run cannot see .*missing, which process 0 wrote"
    ) as error:
        check_shared(accelerator, tmp_path / "missing", patience=0.1)
    assert error.value.is_of_all
