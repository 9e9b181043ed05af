"""Profiled steps: the trace and the page of a few steps, the same steps for the loop."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator

from vit_finetune.training import RunConsole
from vit_finetune.training.profiling import kind_of, profiled, summary


def steps(count):
    """Yield numbers, as the loop asks for them."""
    yield from range(count)


def run(run_dir: Path, count: int, *, wanted: bool = True) -> list[int]:
    """Ask for all steps and do some work in each."""
    run_dir.mkdir(exist_ok=True)
    seen = []
    for step in profiled(steps(count), wanted, Accelerator(cpu=True), run_dir, RunConsole(enabled=False)):
        torch.nn.functional.gelu(torch.ones(64, 64) @ torch.ones(64, 64))
        seen.append(step)
    return seen


def test_profiled__every_step_comes_and_some_are_profiled(tmp_path):
    """All steps are passed on; the trace holds the products of the three profiled ones, the page names them."""
    assert run(tmp_path / "run", 9) == list(range(9))
    events = json.loads((tmp_path / "run/profile/trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == 3
    page = (tmp_path / "run/profile/summary.md").read_text()
    assert "| matrix products | " in page
    assert "| activations | " in page
    assert "waiting for pictures" in page


def test_profiled__nothing_unless_wanted_or_the_run_is_too_short(tmp_path, capsys):
    """Without the switch nothing is written; a run of fewer steps is passed on whole."""
    assert run(tmp_path / "off", 9, wanted=False) == list(range(9))
    assert run(tmp_path / "short", 4) == list(range(4))
    assert not (tmp_path / "off/profile").exists()
    assert not (tmp_path / "short/profile").exists()


def test_kinds__of_operations():
    """Names of torch's operations go to the kind of work they are."""
    expected = {
        "aten::addmm": "matrix products",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::native_layer_norm_backward": "norms",
        "aten::gelu_backward": "activations",
        "aten::_fused_adamw_": "optimizer",
        "aten::copy_": "copies",
        "aten::nonzero": "other",
    }
    assert {name: kind_of(name) for name in expected} == expected


def test_summary__shares_are_of_all_work():
    """Shares of the kinds add up to the whole, and waiting is a share of the wall time."""
    page = summary([("aten::mm", 3.0, 6), ("aten::gelu", 1.0, 3)], seconds=8.0, waited=2.0, on_device=False)
    assert "| matrix products | 75.0% |" in page
    assert "| activations | 25.0% |" in page
    assert "25% of it was waiting" in page
    assert "| `aten::mm` | 75.0% | 2 |" in page
