"""What several processes cost and save: time against one process, and memory of shards (FSDP2) against DDP.

    python benchmarks/processes.py [time | memory] [--processes 2] [--threads 2] [--model vit_small_patch16_224]

`time`: the same global batch by one process with all threads, and by N processes with the threads shared out; the ratio
of the two seconds a step is 1 where dividing the work costs nothing. `memory`: of each process while it trains,
resident above what it has before there is a network, and of its tensors; on CPUs over gloo, where a run of ours refuses
to shard.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import socket
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from allocation import most_allocated
from torch.distributed.fsdp import FSDPModule

from vit_finetune.models import Backbone, create_model, replace_head
from vit_finetune.training import make_optimizer, parameter_groups, sharding

NUM_CLASSES = 10
MIB = 2**20


def made(name: str, img_size: int) -> Backbone:
    """Return a network with random weights."""
    torch.manual_seed(0)
    model = replace_head(create_model(name, img_size=img_size), NUM_CLASSES)
    model.train()
    return model


def trainer(model: Backbone, accelerator: Accelerator, *, shards: bool) -> Callable[[int], None]:
    """Return what does one optimizer step over so many pictures of this process."""
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=1.0)
    optimizer = make_optimizer(groups, name="adamw", lr=1e-4, momentum=0.9, nesterov=False, betas=None, eps=None)
    optimizer = accelerator.prepare(optimizer)
    wrapped = accelerator.prepare_model(model, evaluation_mode=shards)
    channels, size = model.config.in_chans, model.config.img_size

    def step(count: int) -> None:
        images, labels = torch.randn(count, channels, *size), torch.randint(NUM_CLASSES, (count,))
        accelerator.backward(torch.nn.functional.cross_entropy(wrapped(images), labels))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure_time(arguments: argparse.Namespace, world: int) -> dict[str, Any]:
    """Return the median seconds of a step of this process, the first two left out."""
    torch.set_num_threads(max(1, arguments.threads // world))
    step = trainer(made(arguments.model, arguments.img_size), Accelerator(cpu=True), shards=False)
    seconds = []
    for _ in range(arguments.steps + 2):
        started = time.perf_counter()
        step(arguments.batch // world)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[2:])}


def measure_memory(arguments: argparse.Namespace, world: int) -> dict[str, Any]:
    """Return the highest memory of this process in its steps in MiB: resident, less that without a network; of tensors.

    Tensors are weights, AdamW's two moments and DDP's buckets, which stay, and what the profiler sees a step allocate.
    """
    torch.set_num_threads(1)
    accelerator, process = Accelerator(cpu=True), psutil.Process()
    torch.ones(1).add(1)
    before = process.memory_info().rss
    model = made(arguments.model, arguments.img_size)
    model.set_grad_checkpointing(arguments.grad_checkpointing)
    shards = arguments.strategy == "fsdp"
    if shards:
        sharding.shard(model, device=accelerator.device, mixed_precision="no", cpu_offload=False)
        assert all(isinstance(block, FSDPModule) for block in model.blocks)
    number = sum(parameter.numel() for parameter in model.parameters())
    step = trainer(model, accelerator, shards=shards)
    gc.collect()
    step(arguments.batch // world)  # makes the optimizer's state
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(arguments.steps):
        step(arguments.batch // world)
    over.set()
    watcher.join()
    own = sum(sharding.local(parameter).numel() for parameter in model.parameters())
    stays = 4 * (3 * own + (0 if shards else number))
    tensors = most_allocated(lambda: step(arguments.batch // world), held=stays)
    return {
        "peak_mib": (peak[0] - before) / MIB,
        "tensors_mib": tensors / MIB,
        "parameters_mib": number * 4 / MIB,
    }


def be_one_of(place: tuple[int, int, int], work: Callable[..., Any], arguments: Any, said: Queue[Any]) -> None:
    """Be a process of a world, at a place (rank, processes, port), and tell what was measured in it."""
    rank, world, port = place
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    said.put(work(arguments, world))
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def in_processes(world: int, work: Callable[..., Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what each of `world` new processes measured."""
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = [
        context.Process(target=be_one_of, args=((rank, world, port), work, arguments, said)) for rank in range(world)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join()
    if any(each.exitcode for each in started):
        raise SystemExit(f"processes ended with {[each.exitcode for each in started]}")
    return [said.get() for _ in started]


def compare_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return seconds a step of one process and of several, and their ratio; the best of several rounds of each."""
    best = {
        world: min(
            max(found["seconds"] for found in in_processes(world, measure_time, arguments))
            for _ in range(arguments.rounds)
        )
        for world in (1, arguments.processes)
    }
    one, several = best[1], best[arguments.processes]
    return {"seconds_one": one, "seconds_several": several, "ratio": several / one}


def compare_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the peak of a process under each strategy, and their ratio."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        arguments.strategy = strategy
        rows = in_processes(arguments.processes, measure_memory, arguments)
        for what in ("peak_mib", "tensors_mib"):
            found[f"{strategy}_{what}"] = max(row[what] for row in rows)
        found["parameters_mib"] = rows[0]["parameters_mib"]
    ratios = {f"ratio_{what}": found[f"fsdp_{what}"] / found[f"ddp_{what}"] for what in ("peak_mib", "tensors_mib")}
    return {**found, **ratios}


def main() -> None:
    """Measure what the command line asks for and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["time", "memory", "both"], default="both")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="in all, shared out")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="pictures in a step, over all processes")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grad-checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; printed in any case")
    arguments = parser.parse_args()
    if arguments.batch % arguments.processes:
        parser.error("--batch must divide by --processes: both sides are to do the same work")
    options = {key: value for key, value in vars(arguments).items() if key not in ("what", "output")}
    told: dict[str, Any] = {"options": options, "machine": f"{platform.processor()}, {os.cpu_count()} cores"}
    for what, compare in (("time", compare_time), ("memory", compare_memory)):
        if arguments.what in (what, "both"):
            told[what] = compare(arguments)
    print(json.dumps(told, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
