"""What `vit-finetune plan` counts against what training takes, and what large ViTs take on 1, 8 and 64 GPUs.

    python benchmarks/plan_memory.py [measured | table | both] [--output runs/plan_memory.json]

`measured`: two training steps of ViT-Ti, S and B in float32 on a CPU, each in a new process. The peak is what torch's
profiler sees allocated from the making of the network on, and beside it the highest resident memory above that before
(what the system gives, with what libraries take inside their kernels and what the allocator keeps). The optimizer
updates all parameters of a group at once, as the calculator counts it for a GPU.

`table`: nothing is measured; each row is what `vit-finetune plan` says for a GPU of 80 GiB in bf16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from allocation import most_allocated

from vit_finetune.config import Config
from vit_finetune.models import create_model, replace_head
from vit_finetune.scaling import growth_of, scale_plan, share_of
from vit_finetune.training import make_optimizer, parameter_groups

NUM_CLASSES = 1000
MEASURED = (  # name, pixels, pictures
    *(("vit_tiny_patch16_224", pixels, count) for pixels, count in ((96, 64), (224, 16))),
    *(("vit_small_patch16_224", pixels, count) for pixels, count in ((96, 32), (224, 8))),
    *(("vit_base_patch16_224", pixels, count) for pixels, count in ((96, 16), (224, 4))),
)
PLANNED = (
    *("vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"),
    "vit_giant_patch14_dinov2",
)
PROCESSES = (1, 8, 64)
GIB, GB = 2**30, 10**9


def config_of(name: str, pixels: int, batch: int) -> Config:
    """Return a recipe that trains all of a network."""
    return Config.load(
        {
            "model": {"name": name, "pretrained": None, "img_size": pixels},
            "data": {"root": "nowhere"},
            "train": {"steps": 1, "global_batch_size": batch},
        }
    )


def counted(name: str, pixels: int, count: int) -> int:
    """Return the bytes that the calculator says for one process."""
    held = growth_of(config_of(name, pixels, count), num_classes=NUM_CLASSES, mixed_precision="no").at(count)
    return share_of(held, "ddp", num_processes=1, accumulation=1).peak


def train(name: str, pixels: int, count: int) -> None:
    """Make a network and do two steps: the first makes the optimizer's states."""
    model = replace_head(create_model(name, img_size=pixels), NUM_CLASSES)
    model.train()
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=1.0)
    optimizer = make_optimizer(groups, name="adamw", lr=1e-4, momentum=0.9, nesterov=False, betas=None, eps=None)
    for group in optimizer.param_groups:
        group["foreach"] = True
    for _ in range(2):
        images, labels = torch.randn(count, 3, pixels, pixels), torch.randint(NUM_CLASSES, (count,))
        logits = model(images, sample_seeds=torch.arange(count))
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def allocated(name: str, pixels: int, count: int) -> int:
    """Return the most bytes that torch's profiler saw allocated at once."""
    return most_allocated(partial(train, name, pixels, count))


def resident(name: str, pixels: int, count: int) -> int:
    """Return the highest resident memory of this process above what it has before, in bytes."""
    process, over = psutil.Process(), threading.Event()
    torch.nn.functional.cross_entropy(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1])).backward()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    train(name, pixels, count)
    over.set()
    watcher.join()
    return peak - before


def compare() -> list[dict[str, Any]]:
    """Count and measure each case, and print the table."""
    print("| | pixels | pictures | counted, MB | allocated, MB | error | resident, MB | error |")
    print("| --- |" + " ---: |" * 7)
    rows = []
    for name, pixels, count in MEASURED:
        case = (name, pixels, count)
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        row = {"name": name, "pixels": pixels, "pictures": count, "counted": counted(*case), **json.loads(said)}
        rows.append(row)
        beside = " | ".join(
            f"{row[how] / 1e6:,.0f} | {100 * (row['counted'] / row[how] - 1):+.1f} %"
            for how in ("allocated", "resident")
        )
        print(f"| {name} | {pixels} | {count} | {row['counted'] / 1e6:,.0f} | {beside} |", flush=True)
    return rows


def plan(batch: int, memory: int) -> list[dict[str, Any]]:
    """Plan each network on each number of GPUs, and print the table."""
    print("| | GPUs | strategy | at once x accumulated | held, GB | sent a step, GB | |")
    print("| --- | ---: | --- | ---: | ---: | ---: | --- |")
    rows = []
    for name in PLANNED:
        config = config_of(name, 224, batch)
        growth = growth_of(config, num_classes=NUM_CLASSES, mixed_precision="bf16")
        for processes in PROCESSES:
            for strategy in ("ddp", "fsdp")[: 1 if processes == 1 else 2]:
                found = scale_plan(
                    growth, config, strategy, num_processes=processes, memory=memory, mixed_precision="bf16"
                )
                rows.append({"name": name, "processes": processes, **found.to_mapping()})
                times = f"{found.per_device_batch_size} x {found.gradient_accumulation_steps}"
                held, sent = found.share.peak / GB, found.share.sent / GB
                end = "" if found.fits else "does not fit"
                print(f"| {name} | {processes} | {strategy} | {times} | {held:.1f} | {sent:.2f} | {end} |", flush=True)
    return rows


def main() -> None:
    """Print what the command line asks for and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["both", "measured", "table"], default="both")
    parser.add_argument("--case", type=json.loads, help="measure [name, pixels, pictures] in this process, only")
    parser.add_argument("--batch", type=int, default=1024, help="the global batch of the table")
    parser.add_argument("--memory", type=float, default=80, help="GiB of a GPU, for the table")
    parser.add_argument("--output", type=Path, default=Path("runs/plan_memory.json"), help="JSON file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.case is not None:  # the resident memory first, while the allocator keeps nothing yet
        print(json.dumps({"resident": resident(*arguments.case), "allocated": allocated(*arguments.case)}))
        return
    told: dict[str, Any] = {}
    if arguments.what in ("measured", "both"):
        told["measured"] = compare()
    if arguments.what in ("table", "both"):
        told["table"] = plan(arguments.batch, int(arguments.memory * GIB))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
