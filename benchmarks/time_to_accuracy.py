"""Time to a trained classifier, from the command to its predictions: ours, timm's train.py, transformers, a plain loop.

The same weights (the demo's), pictures, epochs, batch, picture size, threads, and, where a trainer lets one choose,
the same crop, flip, rate, layer decay and smoothing; transformers' Trainer has its example's settings. Rounds
interleave the contenders, one seed a round. For each: wall seconds (imports included), pictures trained on per second,
the peak memory of its process, accuracy on val. Ratios are to the fastest peer of the same round; their median is told.

--mode full trains everything. last_n trains the last three blocks: ours as a plain run, and with one and two views of
the frozen half kept (tuning.cache_prefix), the cache empty at the start. linear_probe trains the head: ours with one
view kept, and readouts of frozen features (recipe frozen_features), of the class token and the best of all kinds, with
an empty and with a filled cache. Peers other than the plain loop cannot freeze from their command line, so these modes
have it alone.

Run: python benchmarks/time_to_accuracy.py [--data FOLDER[:IMG_SIZE[:HFLIP]]] [--mode last_n] [--timm-train train.py]
Without --data: the quickstart's digits at 56 px, about 2 minutes a round on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from small_folders import PEERS, Task, hf_command, peer_weights, task_of, timm_command, timm_score

from vit_finetune import write_demo_digits
from vit_finetune.common.files import write_json

LR = 3e-4


class Contender(NamedTuple):
    """One way to train.

    Attributes:
        command: to run.
        guesses: reads or makes its predictions, path below val/ -> class.
        is_ours: whether ratios are of it.
        caches: where it keeps features; None for nowhere.
        is_cold: whether that is emptied before.
    """

    command: list[str]
    guesses: Callable[[], dict[str, str]]
    is_ours: bool = False
    caches: Path | None = None
    is_cold: bool = True


def watched(command: list[str], log: Path, cache: Path | None) -> tuple[float, float]:
    """Run a command; return its wall seconds and the peak memory of its process in MB (Linux)."""
    variables = os.environ | ({} if cache is None else {"VIT_FINETUNE_CACHE": str(cache)})
    started, peak = time.perf_counter(), 0
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            except OSError:  # it has just ended
                continue
            peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
            time.sleep(0.05)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return seconds, peak / 1024


def ours(task: Task, seed: int, place: Path, epochs: int, *settings: str, recipe: str = "image_folder") -> list[str]:
    """Return the command of one of our runs; val/ is its val split."""
    command = [sys.executable, "-m", "vit_finetune", "train", recipe, f"data.root={task.folder}"]
    command += [f"model.img_size={task.img_size}", f"run.seed={seed}", f"run.dir={place}", "run.check=off"]
    if recipe == "image_folder":
        command += [f"train.epochs={epochs}", "train.global_batch_size=32", f"optimizer.lr={LR}"]
        command += ["optimizer.layer_decay=0.75", "optimizer.weight_decay=0.05", "train.label_smoothing=0.1"]
        command += ["schedule.warmup_steps=10", "data.scale=[0.35,1.0]", f"data.hflip={task.hflip}"]
        command += ["model.drop_path_rate=0"]
    return [*command, *settings, "--overwrite"]


def predictions(task: Task, place: Path) -> dict[str, str]:
    """Return what one of our runs predicts of val."""
    from pyarrow import parquet

    table = parquet.read_table(place / "predictions.parquet").to_pydict()
    rows = zip(table["path"], table["prediction"], strict=True)
    return {str(Path(path).relative_to(task.folder / "val")): guess for path, guess in rows}


def contenders(task: Task, mode: str, seed: int, epochs: int, timm_train: Path | None) -> dict[str, Contender]:
    """Return who takes part in a round."""
    weights, found = peer_weights(task.work), dict[str, Contender]()
    cache = task.work / "cache"

    def add_ours(name: str, *settings: str, recipe: str = "image_folder", is_cold: bool = True) -> None:
        place = task.work / f"ours-{name.replace(' ', '-')}-{seed}"
        command = ours(task, seed, place, epochs, *settings, recipe=recipe)
        found[f"ours: {name}"] = Contender(command, lambda: predictions(task, place), True, cache, is_cold)

    def add_peer(name: str, command: list[str], place: Path, before: Callable[[], None] = lambda: None) -> None:
        def guesses() -> dict[str, str]:
            before()
            return dict(json.loads(place.with_suffix(".json").read_text(encoding="utf-8")))

        found[name] = Contender(command, guesses)

    if mode == "full":
        add_ours("full")
        place = task.work / f"hf-{seed}"
        command = hf_command(task, seed, place, lr=5e-5, epochs=epochs, weights=weights["hf_dinov2"])
        add_peer("transformers Trainer", command, place)
        if timm_train is not None:
            place, file = task.work / f"timm-{seed}", weights["timm"] / "model.safetensors"
            shutil.rmtree(place, ignore_errors=True)
            command = timm_command(task, seed, place, lr=LR, epochs=epochs, script=timm_train, weights=file)
            add_peer("timm train.py", command, place, lambda place=place: timm_score(task, place))
    elif mode == "last_n":
        settings = ("tuning.mode=last_n", "tuning.num_blocks=3")
        for views in ("off", "1", "2"):
            add_ours(f"last_n, views {views}", *settings, f"tuning.cache_prefix={views}")
    else:
        add_ours("linear_probe, views 1", "tuning.mode=linear_probe", "tuning.cache_prefix=1")
        for name, settings in {"logistic regression": ("readout.name=logistic",), "best readout": ()}.items():
            add_ours(f"{name}, cold", *settings, recipe="frozen_features")
            add_ours(f"{name}, warm", *settings, recipe="frozen_features", is_cold=False)
    place = task.work / f"plain-{mode}-{seed}"
    command = [sys.executable, str(PEERS / "plain_loop.py"), "--data", str(task.folder), "--mode", mode]
    command += ["--weights", str(weights["timm"] / "model.safetensors"), "--output", str(place.with_suffix(".json"))]
    command += ["--img-size", str(task.img_size), "--epochs", str(epochs), "--lr", str(LR), "--seed", str(seed)]
    add_peer("plain loop over timm's module", [*command, "--hflip", str(task.hflip)], place)
    return found


def a_round(task: Task, found: dict[str, Contender], epochs: int, seed: int) -> list[dict[str, Any]]:
    """Run every contender once; return a row for each."""
    rows = []
    for name, one in found.items():
        if one.caches is not None and one.is_cold:
            shutil.rmtree(one.caches, ignore_errors=True)
        seconds, peak = watched(one.command, task.work / f"{name.replace(' ', '-').replace(':', '')}.log", one.caches)
        guesses = one.guesses()
        right = [guesses[file] == label for file, label in task.truth.items()]
        rows.append(
            {
                "method": name,
                "is_ours": one.is_ours,
                "seed": seed,
                "seconds": seconds,
                "images_per_second": epochs * task.num_train / seconds,
                "peak_mb": peak,
                "accuracy": sum(right) / len(right),
            }
        )
        print(f"{name:<34} seed {seed}  {seconds:6.1f} s  {peak:6.0f} MB  {rows[-1]['accuracy']:.1%}", flush=True)
    best = min(row["seconds"] for row in rows if not row["is_ours"])
    return [row | {"speed_over_best_peer": best / row["seconds"]} for row in rows]


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table: medians, and of accuracy the mean with its range."""
    keys = ("seconds", "images_per_second", "peak_mb", "speed_over_best_peer")
    lines = ["| method | seconds | images/s | peak MB | speed over the best peer | accuracy |", "| --- " * 6 + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        seconds, rate, peak, ratio = (statistics.median(row[key] for row in own) for key in keys)
        shares = [row["accuracy"] for row in own]
        told = f"{statistics.mean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        lines.append(f"| {method} | {seconds:.1f} | {rate:.1f} | {peak:.0f} | {ratio:.2f} | {told} |")
    return lines


def main() -> None:
    """Run the rounds, print the table, write all rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="FOLDER[:IMG_SIZE[:HFLIP]]", help="with train/CLASS and val/CLASS")
    parser.add_argument("--mode", choices=("full", "last_n", "linear_probe"), default="full")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, which is in no wheel")
    parser.add_argument("--work", type=Path, default=Path("runs/time_to_accuracy"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    place = arguments.data or f"{write_demo_digits('quickstart_images')}:56:0"
    task = task_of("data", place, 0, arguments.work.resolve())
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.num_seeds):
        found = contenders(task, arguments.mode, seed, arguments.epochs, arguments.timm_train)
        rows += a_round(task, found, arguments.epochs, seed)
        write_json(arguments.work / f"{arguments.mode}.json", {"epochs": arguments.epochs, "rows": rows})
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
