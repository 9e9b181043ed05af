"""Measure the recipes on folders of pictures, with the settings of measure.json; goes on where it stopped.

Run: python recipes/measure.py NAME=FOLDER... [--only RECIPE]... [--results runs/measure] [--set KEY=VALUE]...
Then: python recipes/measure_table.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from vit_finetune import Config, RequestError, WorkError, finetune


def measure(recipe: str, overrides: list[str], run_dir: Path) -> dict[str, Any]:
    """Run a recipe, or go on with it, and return its figures; an epoch's seconds at the pace of its fastest tenth."""
    config, started = Config.load(recipe, overrides=[*overrides, f"run.dir={run_dir}"]), time.monotonic()
    result = finetune(config, resume=True)
    seconds, plan = time.monotonic() - started, json.loads((run_dir / "plan.json").read_text())
    timing = run_dir / "timing.jsonl"
    rows = map(json.loads, timing.read_text().splitlines() if timing.exists() else [])
    steps = sorted(row["seconds"] for row in rows if {"step", "seconds"} <= set(row))
    per_epoch = steps[len(steps) // 10] * plan["num_train"] / config.train.global_batch_size if steps else None
    trained = max((stage["num_trained"] for stage in plan.get("tuned", [])), default=None)
    return {**result.metrics, "trained": trained, "epoch_seconds": per_epoch, "seconds": seconds}  # of this call


def main(arguments: list[str]) -> None:
    """Measure what has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER", type=lambda text: text.partition("=")[::2])
    parser.add_argument("--only", action="append", metavar="RECIPE")
    parser.add_argument("--results", type=Path, default=Path("runs/measure"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args(arguments)
    settings = json.loads(Path(__file__).with_suffix(".json").read_text())
    log = options.results / "results.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for name, folder in options.data:
        for recipe in options.only or settings["recipes"]:
            for seed in range(settings["seeds"].get(recipe, 1)):
                if any((row["data"], row["recipe"], row["seed"]) == (name, recipe, seed) for row in done):
                    continue
                given = [*settings["common"], *settings["recipes"].get(recipe, []), f"run.seed={seed}"]
                given += [f"data.root={folder}", *options.overrides]
                figures = measure(recipe, given, options.results / name / recipe / str(seed))
                with log.open("a") as file:
                    file.write(json.dumps({"data": name, "recipe": recipe, "seed": seed, **figures}) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
