"""Tokens nobody needs: what progressive sizes and patch dropout save and cost in training, token merging afterwards.

For each seed one run of the image_folder recipe's fine-tuning per contender, at equal epochs, in turns, so that a busy
machine slows all of them alike; train/ is trained on, val/ is scored once, at the last step. Accuracies are compared
with the plain run's on the same pictures (exact McNemar test, pooled over seeds). Then each seed's plain network scores
val/ with more and more tokens merged, taking turns batch by batch. Seconds are the steps' (of the batches', when
merging) on the wall; processor seconds are the whole run's, for a machine that others share.

Run: python benchmarks/tokens.py FOLDER [--img-size 98] [--sizes 56 70] [--epochs 2] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from vit_finetune import Config, Predictor, create_model, finetune, load_splits
from vit_finetune.data.loader import eval_batches
from vit_finetune.models import MergedTokens

BATCH = 32  # pictures per forward pass when merging is timed


def contenders(arguments: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Return what each contender lays over the plain recipe."""
    sizes = ",".join(map(str, arguments.sizes))
    return {
        "plain": (),
        f"sizes {sizes} first": (f"train.progressive_sizes=[{sizes}]",),
        **{f"patch dropout {rate:g}": (f"model.patch_drop_rate={rate}",) for rate in arguments.drop},
    }


def train(arguments: argparse.Namespace, run_dir: Path, seed: int, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Fine-tune once; return which pictures of val are right, and what it took."""
    config = Config.load(
        "image_folder",
        overrides=[
            *(f"data.root={arguments.folder}", f"model.img_size={arguments.img_size}", f"run.dir={run_dir}"),
            *(f"model.pretrained={arguments.pretrained}", f"train.epochs={arguments.epochs}", f"run.seed={seed}"),
            *(f"schedule.warmup_epochs={arguments.epochs / 4}", f"evaluation.every_epochs={arguments.epochs}"),
            *(f"train.mixed_precision={arguments.precision}", f"run.num_threads={arguments.threads}"),
            *("checkpoint.keep_last=1", "run.report=off", *overrides),
        ],
    )
    started = time.process_time()
    result = finetune(config, overwrite=True)
    processor = time.process_time() - started
    rows = map(json.loads, (run_dir / "timing.jsonl").read_text(encoding="utf-8").splitlines())
    seconds = sum(row["seconds"] for row in rows if "seconds" in row)
    right = pd.read_parquet(run_dir / "predictions.parquet")["correct"].tolist()
    return {"accuracy": result.metrics["accuracy"], "right": right, "seconds": seconds, "processor": processor}


def against_plain(plain: list[bool], other: list[bool]) -> str:
    """Return in words how one contender's pictures differ from the plain ones'."""
    won = sum(ours and not theirs for theirs, ours in zip(plain, other, strict=True))
    lost = sum(theirs and not ours for theirs, ours in zip(plain, other, strict=True))
    chance = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return f"{won} won, {lost} lost, p {chance:.2f}"


def training_lines(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield a row for each contender: means over seeds, and ratios to the plain runs."""
    columns = f"{'val':>7}  {'steps s':>8}  {'ratio':>6}  {'processor s':>11}  {'ratio':>6}  against plain"
    yield f"{'training':<24}  {columns}"
    plain = found["plain"]
    mean = {key: statistics.fmean(run[key] for run in plain) for key in ("seconds", "processor")}
    for name, runs in found.items():
        accuracy, seconds, processor = (
            statistics.fmean(run[key] for run in runs) for key in ("accuracy", "seconds", "processor")
        )
        pooled = [[right for run in each for right in run["right"]] for each in (plain, runs)]
        yield (
            f"{name:<24}  {accuracy:7.2%}  {seconds:8.1f}  {seconds / mean['seconds']:6.2f}  {processor:11.1f}  "
            f"{processor / mean['processor']:6.2f}  {against_plain(*pooled)}"
        )


@torch.inference_mode()
def merged(arguments: argparse.Namespace, run_dir: Path) -> dict[str, dict[str, Any]]:
    """Score val with tokens merged in a finished network; return seconds and hits by their number."""
    predictor = Predictor(run_dir, device="cpu")
    val = load_splits(root=arguments.folder).val
    assert val is not None
    networks: dict[int, nn.Module] = {
        number: MergedTokens(predictor.model, number) if number else predictor.model for number in arguments.merge
    }
    found: dict[str, dict[str, Any]] = {str(number): {"seconds": 0.0, "right": []} for number in networks}
    for batch in eval_batches(val, predictor.transform(), batch_size=BATCH):
        for number, network in networks.items():
            started = time.perf_counter()
            guess = network(batch.images).argmax(dim=1)
            found[str(number)]["seconds"] += time.perf_counter() - started
            found[str(number)]["right"] += (guess == batch.labels).tolist()
    return found


def merging_lines(found: list[dict[str, dict[str, Any]]]) -> Iterator[str]:
    """Yield a row for each number of merged tokens: means over seeds."""
    yield f"{'merge_tokens':<24}  {'val':>7}  {'images/s':>8}  {'faster':>6}  against none"
    first = min(found[0], key=int)
    for number in found[0]:
        right = [hit for seed in found for hit in seed[number]["right"]]
        none = [hit for seed in found for hit in seed[first]["right"]]
        rate = statistics.fmean(len(seed[number]["right"]) / seed[number]["seconds"] for seed in found)
        faster = statistics.median(seed[first]["seconds"] / seed[number]["seconds"] for seed in found)
        yield f"{number:<24}  {np.mean(right):7.2%}  {rate:8.1f}  {faster:6.2f}  {against_plain(none, right)}"


def step_lines(arguments: argparse.Namespace, *, rounds: int = 7) -> Iterator[str]:
    """Yield what a training step of each size and dropout takes, taking turns; a ViT-S/14 with random weights.

    Of one thread the processor's seconds are told, which other work on the machine changes least.
    """
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    cases = {f"{size} px": (size, 0.0) for size in (arguments.img_size, *arguments.sizes)}
    cases |= {f"patch dropout {rate:g}": (arguments.img_size, rate) for rate in arguments.drop}
    times: dict[str, list[float]] = {name: [] for name in cases}
    models = {
        rate: create_model(
            "vit_small_patch14_dinov2",
            img_size=arguments.img_size,
            num_classes=10,
            dynamic_img_size=True,
            patch_drop_rate=rate,
        ).train()
        for rate in (0.0, *arguments.drop)
    }
    optimizers = {rate: torch.optim.AdamW(model.parameters(), fused=True) for rate, model in models.items()}
    for number in range(rounds + 1):
        for name, (size, rate) in cases.items():
            images, labels = torch.randn(BATCH, 3, size, size), torch.randint(10, (BATCH,))
            started = clock()
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
                logits = models[rate](images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizers[rate].step()
            optimizers[rate].zero_grad()
            if number:  # the first makes buffers
                times[name].append(clock() - started)
    plain = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = statistics.median(own / base for own, base in zip(seconds, plain, strict=True))
        yield f"step at {name:<18}  {statistics.median(seconds):6.2f} s  {ratio:.2f} of the plain one"


@torch.inference_mode()
def larger_lines(img_size: int, numbers: list[int], *, repeats: int = 5) -> Iterator[str]:
    """Yield how much faster a ViT-S/14 with random weights is at a larger size, where there is more to merge."""
    model = create_model("vit_small_patch14_dinov2", img_size=img_size, num_classes=10).eval()
    images: Tensor = torch.randn(8, 3, img_size, img_size)
    networks: dict[int, nn.Module] = {number: MergedTokens(model, number) if number else model for number in numbers}
    times: dict[int, list[float]] = {number: [] for number in networks}
    for _ in range(repeats):
        for number, network in networks.items():
            started = time.perf_counter()
            network(images)
            times[number].append(time.perf_counter() - started)
    plain = times[min(times)]
    for number, seconds in times.items():
        ratio = statistics.median(base / own for base, own in zip(plain, seconds, strict=True))
        yield f"at {img_size} px, random weights, merge_tokens {number}: {ratio:.2f} x as fast"


def rows_of(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that were written with the same settings before."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [row for row in map(json.loads, lines) if row["settings"] == settings]


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield both tables over the seeds that there are."""
    trained: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        trained.setdefault(row["name"], []).append(row)
    yield from training_lines(trained)
    yield ""
    yield from merging_lines([row["merged"] for row in trained["plain"]])


def main() -> None:
    """Append a row for each run to a file, and print the tables; a run that is there is not repeated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="root/{train,val}/CLASS/...")
    parser.add_argument("--pretrained", default="demo")
    parser.add_argument("--img-size", type=int, default=98)
    parser.add_argument("--sizes", type=int, nargs="+", default=[56, 70])
    parser.add_argument("--drop", type=float, nargs="*", default=[0.25, 0.5])
    parser.add_argument("--merge", type=int, nargs="+", default=[0, 2, 4, 8], help="the least counts as the plain one")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none trains nothing")
    parser.add_argument("--precision", default="no", choices=["no", "bf16"], help="of training; merging is float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", action="store_true", help="time steps of each kind in turns, too")
    parser.add_argument("--larger", type=int, default=224, help="size at which random weights are timed, too; 0: none")
    parser.add_argument("--output", type=Path, default=Path("tokens.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("seeds", "output", "larger", "drop", "steps")
    }
    rows = rows_of(arguments.output, settings)
    with tempfile.TemporaryDirectory() as work:
        for seed, (name, overrides) in product(arguments.seeds, contenders(arguments).items()):
            if any((row["seed"], row["name"]) == (seed, name) for row in rows):
                continue
            row = {"settings": settings, "seed": seed, "name": name, **train(arguments, Path(work), seed, overrides)}
            if name == "plain":
                row["merged"] = merged(arguments, Path(work))
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows = rows_of(arguments.output, settings)
    lines = [*step_lines(arguments), ""] if arguments.steps else []
    lines += tables(rows) if rows else []
    if arguments.larger:
        lines += ["", *larger_lines(arguments.larger, [0, 4, 8, 16])]
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
