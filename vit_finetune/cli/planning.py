"""The verb that says what a recipe takes on N processes: plan."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vit_finetune.cli.app import app


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A YAML file or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    num_processes: Annotated[int, typer.Option(min=1, help="GPUs that share a step.")] = 1,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Of each: 80GiB, 24GB ...")] = "80GiB",
    num_classes: Annotated[int, typer.Option(min=1, help="Outputs of the head; no picture is opened.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a recipe fits on N GPUs under DDP and FSDP2, with what micro-batch, and what they send.

    Example: vit-finetune plan vit_paper/cifar10 --num-processes 64 --memory 80GiB
    """
    from vit_finetune.common.sizes import parse_size
    from vit_finetune.config import Config
    from vit_finetune.scaling import even_world_sizes, growth_of, scale_plan

    config, limit = Config.load(recipe, overrides=overrides or []), parse_size(memory, "--memory")
    batch = config.train.global_batch_size
    precision = "bf16" if config.train.mixed_precision == "auto" else config.train.mixed_precision
    even = even_world_sizes(batch, num_processes, in_pairs=config.train.mixes)
    growth = growth_of(config, num_classes=num_classes, mixed_precision=precision)
    plans = {
        name: scale_plan(growth, config, name, num_processes=num_processes, memory=limit, mixed_precision=precision)
        for name in ("ddp", "fsdp")
    }
    if as_json:
        told = {"num_processes": num_processes, "memory_bytes": limit, "global_batch_size": batch}
        by_strategy = {name: strategy.to_mapping() for name, strategy in plans.items()}
        print(json.dumps({**told, "mixed_precision": precision, "even_num_processes": even, **by_strategy}))
        return
    print(f"step     {batch} pictures over {num_processes} processes, precision {precision}, a head of {num_classes}")
    if num_processes not in even:
        print(f"note     {num_processes} do not share them evenly, so some wait; {' and '.join(map(str, even))} would")
    print(
        "         fits  at once  accumulated    weights  gradients  optimizer  gathered  activations    peak     sent"
    )
    for name, found in plans.items():
        share = found.share
        held = (share.weights, share.gradients, share.optimizer + share.average, share.gathered, share.activations)
        cells = [f"{size / 1e9:.2f}" for size in (*held, share.peak, share.sent)]
        print(
            f"{name:<8} {'yes' if found.fits else 'no':>4} {found.per_device_batch_size:>8} "
            f"{found.gradient_accumulation_steps:>12} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10} {cells[3]:>9} "
            f"{cells[4]:>12} {cells[5]:>7} {cells[6]:>8}"
        )
    print("         GB of each process; sent: GB of each in a step; 1 GB more is kept for what the libraries take")
