"""What a training step on a CPU takes with other micro-batches, precisions, and ways in which threads wait.

A step is 32 pictures through ViT-S/14, forward, backward and AdamW, in micro-batches that are accumulated. Threads wait
for each other between operations: by spinning, which is quickest where nothing else runs, or asleep after a moment.
"Beside another program" is measured while one more process keeps a core busy. Every setting is a process of its own;
they take turns, and the median of all rounds counts.

Run: python benchmarks/cpu_settings.py [--rounds 3] [--img-size 56 --img-size 98]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict

import torch

from vit_finetune import create_model

BATCH, STEPS = 32, 8
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this program
WAITING = {"spins": {}, "10,000 spins": {"GOMP_SPINCOUNT": "10000"}, "sleeps": {"OMP_WAIT_POLICY": "passive"}}


def seconds_of_a_step(img_size: int, precision: str, micro_batch: int) -> float:
    """Return the median seconds of a step in this process."""
    model = create_model("vit_small_patch14_dinov2", img_size=img_size, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images, labels = torch.rand(BATCH, 3, img_size, img_size), torch.randint(0, 10, (BATCH,))
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        for part, truth in zip(images.split(micro_batch), labels.split(micro_batch), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = torch.nn.functional.cross_entropy(model(part), truth)
            (loss * len(part) / BATCH).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def measured(setting: tuple[int, str, int, str]) -> float:
    """Return the seconds of a step in a fresh process."""
    img_size, precision, micro_batch, waits = setting
    command = [sys.executable, __file__, "--one", str(img_size), precision, str(micro_batch)]
    ran = subprocess.run(
        command, env={**os.environ, **WAITING[waits]}, stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    return float(ran.stdout)


def main() -> None:
    """Measure all settings in turns, alone and beside another program, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--img-size", type=int, action="append")
    parser.add_argument("--one", nargs=3, metavar=("SIZE", "PRECISION", "MICRO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(seconds_of_a_step(int(options.one[0]), options.one[1], int(options.one[2])))
        return
    settings = [
        (size, precision, micro_batch, waits)
        for size in options.img_size or [56, 98]
        for precision in ("fp32", "bf16")
        for micro_batch, waits in ((16, "spins"), (32, "spins"), (32, "10,000 spins"), (32, "sleeps"))
    ]
    found: dict[tuple[tuple[int, str, int, str], bool], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for setting in settings:
            found[setting, False].append(measured(setting))
            other = subprocess.Popen([sys.executable, "-c", BUSY])
            try:
                found[setting, True].append(measured(setting))
            finally:
                other.kill()
                other.wait()
    print("| picture | precision | micro-batch | waiting thread | s a step, alone | beside another program |")
    print("| --- | --- | --- | --- | --- | --- |")
    for setting in settings:
        alone, beside = (statistics.median(found[setting, busy]) for busy in (False, True))
        print(f"| {' | '.join(map(str, setting))} | {alone:.2f} | {beside:.2f} |")


if __name__ == "__main__":
    main()
