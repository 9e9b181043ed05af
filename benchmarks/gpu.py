"""One CUDA device: training steps and forward passes of our network and timm's module, side by side, per precision.

For each network and precision: images a second of a training step (forward, backward, fused AdamW) and of a forward
pass in inference mode, medians of interleaved rounds, with the peak of the device's memory. Random weights and pixels:
speed does not depend on them. Both modules get the same images, batch, precision and optimizer.

Run: python benchmarks/gpu.py [--model vit_base_patch16_224] [--batch-size 128] [--output gpu.json]
`benchmarks/gpu.sh` runs it after the tests that need a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vit_finetune import create_model

NUM_CLASSES = 10
PRECISIONS = ("fp32", "tf32", "bf16", "bf16 compiled")
WARM_UP_STEPS = 3


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the context of a precision, with the switch for TF32 products set."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return torch.autocast("cuda", dtype=torch.bfloat16) if precision.startswith("bf16") else nullcontext()


def training_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, precision: str) -> Callable[[], None]:
    """Return one step of fine-tuning all of a network."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()

    def step() -> None:
        with autocast(precision):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_pass(model: nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """Return one pass in inference mode."""

    def step() -> None:
        model.eval()
        with torch.inference_mode(), autocast(precision):
            model(images)

    return step


def milliseconds(step: Callable[[], None], num_steps: int) -> float:
    """Return the milliseconds of one of `num_steps` steps, between two events of the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(num_steps):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / num_steps


def peak_gib(step: Callable[[], None]) -> float:
    """Return the most memory that tensors took during a step, in GiB."""
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def built(name: str, which: str, precision: str) -> nn.Module:
    """Return our network or timm's on the device."""
    make = create_model if which == "ours" else timm.create_model
    model: nn.Module = make(name, num_classes=NUM_CLASSES).cuda()
    if precision.endswith("compiled"):
        model.compile()
    return model


def compared(name: str, precision: str, kind: str, *, batch_size: int, rounds: int, num_steps: int) -> dict[str, Any]:
    """Time both networks, turn about; each one's memory is measured while the other is not there."""
    images = torch.randn(batch_size, 3, 224, 224, device="cuda")
    labels = torch.randint(NUM_CLASSES, (batch_size,), device="cuda")

    def make(which: str) -> Callable[[], None]:
        model = built(name, which, precision)
        step = (
            training_step(model, images, labels, precision)
            if kind == "train"
            else forward_pass(model, images, precision)
        )
        for _ in range(WARM_UP_STEPS):
            step()
        return step

    memory = {}
    for which in ("ours", "timm"):
        step = make(which)
        memory[which] = peak_gib(step)
        del step
        torch.cuda.empty_cache()
    steps = {which: make(which) for which in ("ours", "timm")}
    times: dict[str, list[float]] = {which: [] for which in steps}
    for _ in range(rounds):
        for which, step in steps.items():
            times[which].append(milliseconds(step, num_steps))
    row: dict[str, Any] = {"model": name, "precision": precision, "kind": kind, "batch_size": batch_size}
    for which in steps:
        row[f"{which}_images_per_second"] = round(1000 * batch_size / statistics.median(times[which]), 1)
        row[f"{which}_peak_gib"] = round(memory[which], 2)
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["timm"], strict=True)]
    row["speed_ratio"] = round(statistics.median(ratios), 3)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="timm's name; may be given again (ViT-S/16 and ViT-B/16)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-steps", type=int, default=10, help="steps between two looks at the clock")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}, {options.batch_size} images of 224 x 224")
    print("| network | precision | | ours, images/s | timm, images/s | ratio | ours, GiB | timm, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for name in options.model or ("vit_small_patch16_224", "vit_base_patch16_224"):
        for precision in PRECISIONS:
            for kind in ("train", "forward"):
                sizes = {"batch_size": options.batch_size, "rounds": options.rounds, "num_steps": options.num_steps}
                row = compared(name, precision, kind, **sizes)
                rows.append(row)
                print(
                    f"| {name} | {precision} | {kind} | {row['ours_images_per_second']:,.0f} | "
                    f"{row['timm_images_per_second']:,.0f} | {row['speed_ratio']:.2f} | {row['ours_peak_gib']:.2f} | "
                    f"{row['timm_peak_gib']:.2f} |",
                    flush=True,
                )
                torch._dynamo.reset()
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
