"""Memory that runs out: the step starts over with half the pictures at once and the run ends as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import ROOT, make_pictures, tiny_config
from training_helpers import Run, options_of, pictures, plan_of, steps_of, tiny_vit

from vit_finetune import finetune
from vit_finetune.common.errors import WorkError
from vit_finetune.common.files import write_json
from vit_finetune.training.micro_batches import (
    cut,
    halved,
    is_out_of_memory,
    remember_micro_batch,
    remembered_micro_batch,
    with_micro_batch,
)
from vit_finetune.training.mix import PairMixing
from vit_finetune.training.objective import Objective

LOSSES = Objective.losses


def run_out(monkeypatch: pytest.MonkeyPatch, fits: Any) -> list[int]:
    """Let memory run out, before or in the middle of a step, wherever `fits(step, count, pictures)` says no."""
    sizes: list[int] = []

    def losses(objective: Any, model: Any, batch: Any, *, step: int, device: Any) -> torch.Tensor:
        sizes.append(len(batch))
        if not fits(step, len(sizes), len(batch)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return LOSSES(objective, model, batch, step=step, device=device)

    monkeypatch.setattr(Objective, "losses", losses)
    return sizes


@pytest.mark.parametrize(
    ("fits", "end"),
    [
        (lambda step, count, size: size <= 3, 2),  # in the first step, twice: 8, 4, 2
        (lambda step, count, size: step < 3 or size <= 4, 4),  # in the fourth step only
        (lambda step, count, size: count != 4, 4),  # once, at the fourth micro-batch of the run
    ],
    ids=["at the start", "later", "once"],
)
def test_fit__memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: Any, end: int) -> None:
    """The loss curve and the weights are those of a run with enough memory; log, timing and plan.json tell the size."""
    whole = Run.start(tmp_path / "whole", tiny_vit(drop_path_rate=0.3))
    whole.fit()
    short = Run.start(tmp_path / "short", tiny_vit(drop_path_rate=0.3))
    run_out(monkeypatch, fits)
    short.fit()
    assert [row["loss"] for row in short.rows()] == pytest.approx([row["loss"] for row in whole.rows()], rel=1e-6)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(short.model.state_dict()[name], tensor, atol=1e-5, rtol=0, msg=name)
    told = json.loads((tmp_path / "short" / "plan.json").read_text())
    assert (told["per_device_batch_size"], told["gradient_accumulation_steps"]) == (end, 8 // end)
    timing = [json.loads(line) for line in (tmp_path / "short" / "timing.jsonl").read_text().splitlines()]
    halvings = [(row["out_of_memory"], row["per_device_batch_size"]) for row in timing if "out_of_memory" in row]
    assert halvings == [(8, 4), (4, 2)][: len(halvings)]
    assert halvings[-1][1] == end


def test_fit__memory_runs_out_in_the_middle_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the micro-batches that fitted before the one that did not are not counted twice."""
    whole = Run.start(tmp_path / "whole", name="sgd")
    whole.fit(plan_of(num_steps=2), batches=steps_of(micro=4))
    short = Run.start(tmp_path / "short", name="sgd")
    sizes = run_out(monkeypatch, lambda step, count, size: count != 2)
    short.fit(plan_of(num_steps=2, per_device_batch_size=4), batches=steps_of(micro=4))
    assert sizes == [4, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(short.model.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(("keep_pairs", "least"), [(False, 1), (True, 2)])
def test_fit__too_large_at_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_pairs: bool, least: int
) -> None:
    """Where the fewest pictures do not fit, the run stops and says what to change; pairs are never parted."""
    sizes = run_out(monkeypatch, lambda step, count, size: False)
    with pytest.raises(WorkError, match=rf"out of memory with {least} picture\(s\) at once, the fewest .* lower model"):
        mixing = PairMixing(seed=0, mixup_alpha=0.8) if keep_pairs else None
        Run.start(tmp_path).fit(options=options_of(objective=Objective(mixing=mixing)))
    assert sizes == [8, 4, 2, 1][: 5 - (2 if keep_pairs else 1)]


def test_fit__other_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not about memory comes out as it is, at the first attempt."""

    def losses(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Objective, "losses", losses)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Run.start(tmp_path).fit()
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("HIP: no room"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("shapes differ"), False),
        (ValueError("CUDA out of memory."), False),
    ],
)
def test_out_of_memory__is_recognised(error: Exception, is_memory: bool) -> None:
    """What GPUs and CPUs say when memory runs out is recognised, other errors are not."""
    assert is_out_of_memory(error) is is_memory


def test_cpu_allocator__is_recognised_for_real() -> None:
    """What torch raises when it cannot have an exabyte is recognised."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_halved__stays_even() -> None:
    """Halves are even down to 2, so that neighbours 2i and 2i + 1 stay together."""
    assert [halved(size) for size in (64, 12, 10, 6, 5, 4, 3, 2, 1)] == [32, 6, 4, 2, 2, 2, 1, 1, 1]


def test_cut__keeps_every_sample_in_order() -> None:
    """Micro-batches of 4, 4 and 1 cut to 2 are 2, 2, 2, 2, 1, with the same rows; what fits is handed on as it is."""
    whole = pictures(0, 9)
    given = [whole.part(slice(0, 4)), whole.part(slice(4, 8)), whole.part(slice(8, 9))]
    parts = cut(given, 2)
    assert [len(part) for part in parts] == [2, 2, 2, 2, 1]
    assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert parts[-1] is given[-1]


def test_plan_json__keeps_what_else_stands_there(tmp_path: Path) -> None:
    """Only the two sizes are replaced; without a plan there is nothing to remember."""
    assert remembered_micro_batch(tmp_path) is None
    write_json(tmp_path / "plan.json", {**plan_of().to_mapping(), "decisions": ["probe"]})
    remember_micro_batch(tmp_path, with_micro_batch(plan_of(), 3))
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told == {
        **plan_of().to_mapping(),
        "per_device_batch_size": 3,
        "gradient_accumulation_steps": 3,
        "decisions": ["probe"],
    }
    assert remembered_micro_batch(tmp_path) == 3


def test_resume__takes_the_halved_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was halved to 2 and killed goes on with 2, and ends as an undisturbed one."""
    root = make_pictures(tmp_path / "pictures", train=5, val=2)
    whole = finetune(tiny_config(root, tmp_path / "whole"))
    config = tiny_config(root, tmp_path / "run")

    def killed(step: int, count: int, size: int) -> bool:
        if step == 6:
            raise KeyboardInterrupt
        return size <= 2

    with monkeypatch.context() as patch:
        run_out(patch, killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    sizes = run_out(monkeypatch, lambda step, count, size: True)
    again = finetune(config, resume=True)
    assert set(sizes) == {2}
    assert json.loads((again.run_dir / "plan.json").read_text())["per_device_batch_size"] == 2
    assert again.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-4)


SCRIPT = """
import os, sys
import torch
from vit_finetune.cli import main
from vit_finetune.training.objective import Objective

real, step_that_fails = Objective.losses, int(sys.argv[2])

def losses(objective, model, batch, *, step, device):
    if os.environ["RANK"] == "1" and step == step_that_fails and len(batch) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return real(objective, model, batch, step=step, device=device)

Objective.losses = losses
sys.argv = ["vit-finetune", "train", sys.argv[1], *sys.argv[3:]]
main()
"""


@pytest.mark.slow
def test_two_processes__the_other_follows(tmp_path: Path) -> None:
    """Memory that runs out on process 1 alone: in the first step both halve; later the run stops and resumes halved."""
    import yaml

    root = make_pictures(tmp_path / "pictures", train=5, val=2)
    (tmp_path / "script.py").write_text(SCRIPT)

    def launch(name: str, step: int, *flags: str) -> subprocess.CompletedProcess[str]:
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(tiny_config(root, tmp_path / name, train={"steps": 4})))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [*command, str(tmp_path / "script.py"), str(recipe), str(step), *flags],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )

    def losses(name: str) -> list[float]:
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows if row["split"] == "train"]

    plain = finetune(tiny_config(root, tmp_path / "plain", train={"steps": 4}))
    first = launch("first", 0)
    assert first.returncode == 0, first.stderr
    assert "step 1: out of memory with 4 pictures at once; the step starts over with 2" in first.stdout
    assert losses("first") == pytest.approx(losses("plain"), abs=1e-5)

    later = launch("later", 2)
    assert later.returncode != 0
    assert "process 1 ran out of memory while the others were waiting" in later.stdout + later.stderr
    resumed = launch("later", 2, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert losses("later") == pytest.approx(losses("plain"), abs=1e-5)
    assert json.loads((tmp_path / "later" / "plan.json").read_text())["per_device_batch_size"] == 2
    assert plain.num_steps == 4
