"""What only a CUDA device can show: precisions, exact resume on it, and agreement with the CPU. Skipped without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import make_pictures, tiny_config
from safetensors.torch import load_file

from vit_finetune import Predictor, RunResult, create_model, finetune
from vit_finetune.data.transforms import Normalise
from vit_finetune.models import attention_maps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NUM_STEPS = 6
# Everything that draws random numbers, and everything that has a state.
TRAIN = {
    "steps": NUM_STEPS,
    "global_batch_size": 12,
    "per_device_batch_size": 4,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "ema_decay": 0.8,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three colours."""
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


def config_of(pictures: Path, run_dir: Path, **train: Any) -> dict[str, dict[str, Any]]:
    """Return a run that scores and saves every step, with results that repeat."""
    return tiny_config(
        pictures,
        run_dir,
        train={**TRAIN, **train},
        evaluation={"every_steps": 1},
        checkpoint={"keep_last": 9},
        run={"dir": str(run_dir), "deterministic": True, "device": "cuda"},
    )


def losses(run_dir: Path, split: str = "train") -> list[float]:
    """Return the losses of a split in metrics.jsonl."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in lines if row["split"] == split]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_cuda__resume_at_any_step_is_bit_identical(pictures: Path, tmp_path: Path, precision: str) -> None:
    """Killed after any step, a deterministic run ends byte for byte as the undisturbed one; fp16's scaler goes on."""
    whole = finetune(config_of(pictures, tmp_path / "whole", mixed_precision=precision))
    for killed_after in (1, 3, 5):
        run_dir = tmp_path / f"{killed_after}"
        shutil.copytree(whole.run_dir, run_dir, ignore=shutil.ignore_patterns("model", "metrics.json", "*.parquet"))
        for step in range(killed_after + 1, NUM_STEPS + 1):
            shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}")
        finetune(config_of(pictures, run_dir, mixed_precision=precision), resume=True)
        last = f"checkpoints/step-{NUM_STEPS:08d}"
        for name in ("metrics.jsonl", "model/model.safetensors", f"{last}/ema.safetensors"):
            assert (run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes(), (killed_after, name)


@pytest.fixture(scope="module")
def on_both(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, RunResult]:
    """Return the same float32 run on the GPU and on the CPU."""
    place = tmp_path_factory.mktemp("runs")
    config = config_of(pictures, place / "gpu", mixed_precision="no")
    gpu = finetune(config)
    cpu = finetune({**config, "run": {**config["run"], "dir": str(place / "cpu"), "device": "cpu"}})
    return gpu, cpu


def test_cuda__float32_follows_the_cpu(on_both: tuple[RunResult, RunResult]) -> None:
    """Same pictures, augmentation, mixing and dropped paths on either device: losses to 1e-4, weights to 1e-3."""
    gpu, cpu = on_both
    for split in ("train", "val"):
        np.testing.assert_allclose(losses(gpu.run_dir, split), losses(cpu.run_dir, split), atol=1e-4)
    ours, theirs = (load_file(run.run_dir / "model" / "model.safetensors") for run in on_both)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=0, msg=name)


def test_cuda__auto_precision_learns(pictures: Path, tmp_path: Path) -> None:
    """Auto is half precision here; forty steps learn three colours, and the file stays float32."""
    result = finetune(config_of(pictures, tmp_path / "run", steps=40, mixed_precision="auto"))
    assert result.metrics["accuracy"] > 0.8
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "run/model/model.safetensors").values())
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["mixed_precision"] in ("bf16", "fp16")


def test_cuda__compiled_follows_eager(pictures: Path, tmp_path: Path) -> None:
    """`train.compile` changes the speed, not the run: losses to 1e-3 in float32."""
    for name, compiled in (("eager", False), ("compiled", True)):
        finetune(config_of(pictures, tmp_path / name, mixed_precision="no", compile=compiled, steps=3))
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), atol=1e-3)


def test_cuda__predictor_agrees_with_the_cpu(on_both: tuple[RunResult, RunResult], pictures: Path) -> None:
    """A finished model gives the same classes and probabilities on either device."""
    there, here = (Predictor(on_both[0], device=device)(str(pictures / "val")) for device in ("cuda", "cpu"))
    assert there.labels == here.labels
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-4)


def test_cuda__micro_batch_is_found(pictures: Path, tmp_path: Path) -> None:
    """`per_device_batch_size: auto` settles on a divisor of the global batch and runs with it."""
    finetune(config_of(pictures, tmp_path / "run", per_device_batch_size="auto", mixup_alpha=0.0, cutmix_alpha=0.0))
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["per_device_batch_size"] * plan["gradient_accumulation_steps"] == plan["global_batch_size"]


def test_cuda__bytes_are_normalised_as_on_the_cpu() -> None:
    """Bytes that travel to the GPU are normalised there to the last bit or nearly."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalise = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(
        normalise.to("cuda")(images.cuda()).cpu(), normalise.to("cpu")(images), atol=1e-6, rtol=0
    )


def test_cuda__attention_maps_agree() -> None:
    """Maps that are recomputed from q and k agree with the CPU's."""
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    here = attention_maps(model, images)
    for ours, theirs in zip(attention_maps(model.cuda(), images.cuda()), here, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=0)
