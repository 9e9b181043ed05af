"""How cost grows: a run with ten times the pictures, and a training step with more tokens.

Pictures: one epoch of full fine-tuning on 400, 1,200 and 4,000 of the demo's digits at 28 px, each a process: seconds
of all steps and of the whole command, and the peak memory, which should not follow the data. Tokens: a ViT-S/14 forward
and backward with 16 pictures at growing sizes, taking turns, beside the operations that torch counts.

Run: python benchmarks/growth.py [--rounds 3] [--output growth.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from time_to_accuracy import watched
from torch.utils.flop_counter import FlopCounterMode

from vit_finetune import create_model, write_demo_digits
from vit_finetune.common.files import write_json

COUNTS = (400, 1_200, 4_000)
SIZES = (56, 98, 140, 224)
BATCH = 16


def subset(digits: Path, folder: Path, count: int) -> Path:
    """Link the same share of each class's training pictures, and all held-out ones, into a folder; return it."""
    for held_out in (digits / "val").iterdir():
        (folder / "val" / held_out.name).mkdir(parents=True)
        for file in sorted(held_out.iterdir())[:10]:
            (folder / "val" / held_out.name / file.name).symlink_to(file)
    for label in sorted((digits / "train").iterdir()):
        (folder / "train" / label.name).mkdir(parents=True)
        for file in sorted(label.iterdir())[: count // 10]:
            (folder / "train" / label.name / file.name).symlink_to(file)
    return folder


def run(data: Path, place: Path) -> dict[str, float]:
    """Train for one epoch; return seconds of the steps and of the command, and the peak in MB."""
    command = [sys.executable, "-m", "vit_finetune", "train", "quickstart", f"data.root={data}", f"run.dir={place}"]
    command += ["model.img_size=28", "train.epochs=1", "schedule.warmup_steps=5", "run.report=off", "run.check=off"]
    seconds, peak = watched([*command, "--overwrite"], place.with_suffix(".log"), None)
    rows = map(json.loads, (place / "timing.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [row["seconds"] for row in rows if "seconds" in row]
    return {"steps": sum(steps), "seconds": seconds, "peak_mb": peak}


def steps_by_size(rounds: int) -> dict[int, tuple[float, float]]:
    """Return for each picture size the median seconds of forward and backward, and billions of operations."""
    models = {size: create_model("vit_small_patch14_dinov2", img_size=size, num_classes=10).train() for size in SIZES}
    labels, times, work = torch.randint(0, 10, (BATCH,)), defaultdict[int, list[float]](list), {}
    for size, model in models.items():  # the first pass makes buffers and is not timed
        with FlopCounterMode(display=False) as counter:
            torch.nn.functional.cross_entropy(model(torch.rand(BATCH, 3, size, size)), labels).backward()
        work[size] = counter.get_total_flops() / 1e9
    for _ in range(rounds):
        for size, model in models.items():
            images = torch.rand(BATCH, 3, size, size)
            model.zero_grad()
            started = time.perf_counter()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            times[size].append(time.perf_counter() - started)
    return {size: (statistics.median(times[size]), work[size]) for size in SIZES}


def main() -> None:
    """Measure, print two tables, write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("growth.json"))
    arguments = parser.parse_args()
    rows = defaultdict[int, list[dict[str, float]]](list)
    with tempfile.TemporaryDirectory() as work:
        digits = Path(work) / "digits"
        write_demo_digits(digits)
        folders = {count: subset(digits, Path(work) / f"{count}", count) for count in COUNTS}
        for _ in range(arguments.rounds):
            for count, folder in folders.items():
                rows[count].append(run(folder, Path(work) / f"run-{count}"))
    print("| pictures | steps, s | per 1,000 pictures | whole command, s | peak MB |\n" + "| --- " * 5 + "|")
    medians = {
        count: {key: statistics.median(row[key] for row in found) for key in found[0]} for count, found in rows.items()
    }
    for count, found in medians.items():
        told = f"{found['steps']:.1f} | {1000 * found['steps'] / count:.2f} | {found['seconds']:.1f}"
        print(f"| {count:,} | {told} | {found['peak_mb']:.0f} |")
    sizes = steps_by_size(3 * arguments.rounds)
    print("| pixels | tokens | seconds | GFLOP | GFLOP/s |\n" + "| --- " * 5 + "|")
    for size, (seconds, gflop) in sizes.items():
        print(f"| {size} | {(size // 14) ** 2 + 1} | {seconds:.3f} | {gflop:.0f} | {gflop / seconds:.0f} |")
    write_json(arguments.output, {"pictures": medians, "tokens": sizes})


if __name__ == "__main__":
    main()
