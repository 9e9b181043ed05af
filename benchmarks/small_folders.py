"""Small folders of pictures, equal wall time: our one default against what others would do by hand.

For each data set (a folder with train/CLASS and val/CLASS) and each seed: `vit-finetune train image_folder` under a
budget of T seconds; timm's train.py and transformers' Trainer from the same weights with epochs that fill T, their
learning rate swept on the first seed and the best of them, BY ITS ACCURACY ON VAL, taken for the other seeds (a favour
to them: our choices are made on train alone); and raw pixels, HOG and the last class token under classical classifiers
(benchmarks/quickstart_baselines.py). Every method writes its prediction for each picture of val, so that methods are
compared on the same pictures: exact McNemar test, pooled over data sets and seeds.

Results are appended to a JSON-lines file as they are made, and a run that is there is not repeated.

Run: python benchmarks/small_folders.py --data digits=FOLDER --data textiles=FOLDER --seconds 120 --timm-train train.py
timm's train.py is in no wheel; take it from its repository (without it, timm is left out).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quickstart_baselines import measure
from scipy.stats import binomtest

from vit_finetune import convert_checkpoint, create_model, write_demo_digits
from vit_finetune.data import load_splits

PEERS = Path(__file__).parent / "peers"
TIMM_RATES = (1e-4, 3e-4, 1e-3)  # with layer decay 0.75
HF_RATES = (1e-5, 2e-5, 5e-5)  # up to the example's default, which is too much here
PARTS = ("classical", "timm", "trainer", "ours")
OURS = "ours: image_folder under a budget"
START_UP_SECONDS = 12  # imports, first batch and evaluation of a peer, taken off its T before epochs are counted


@dataclass(frozen=True)
class Task:
    """A data set at a picture size, under a time."""

    name: str
    folder: Path
    img_size: int
    hflip: float
    seconds: float
    work: Path

    @property
    def truth(self) -> dict[str, str]:
        """Path below val/ -> class."""
        files = sorted(path for path in (self.folder / "val").rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder / "val")): path.parent.name for path in files}

    @property
    def num_train(self) -> int:
        """How many pictures there are to learn from."""
        return sum(path.is_file() for path in (self.folder / "train").rglob("*"))


def images_per_second(img_size: int) -> float:
    """Return the speed of plain training steps at a picture size: what the peers' epochs are counted by."""
    model = create_model("vit_small_patch14_dinov2", img_size=img_size, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, labels = torch.rand(32, 3, img_size, img_size), torch.randint(0, 10, (32,))
    times = []
    for _ in range(6):
        started = time.perf_counter()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return 32 / min(times)


def measured_rate(task: Task) -> float:
    """Return the speed at the task's picture size, measured once and kept beside the results."""
    path, key = task.work / "rates.json", str(task.img_size)
    rates: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key not in rates:
        rates[key] = images_per_second(task.img_size)
        path.write_text(json.dumps(rates), encoding="utf-8")
    return rates[key]


def run(command: list[str], log: Path, **variables: str) -> float:
    """Run a command under more environment variables, keep what it prints, return its wall seconds."""
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables)
    return time.perf_counter() - started


def ours(task: Task, seed: int, place: Path) -> tuple[dict[str, str], float]:
    """Train our default under the budget; val/ is its test split, opened once at the end."""
    from pyarrow import parquet

    command = [sys.executable, "-m", "vit_finetune", "train", "image_folder", f"data.root={task.folder}"]
    command += ["data.test_split=val", f"train.budget={task.seconds:g}s"]
    command += [f"model.img_size={task.img_size}", f"data.hflip={task.hflip}", f"run.seed={seed}", f"run.dir={place}"]
    with tempfile.TemporaryDirectory() as empty:  # nothing of an earlier run is there to be taken
        seconds = run([*command, "--overwrite"], place.with_suffix(".log"), VIT_FINETUNE_CACHE=empty)
    table = parquet.read_table(place / "predictions.parquet").to_pydict()
    return {
        str(Path(path).relative_to(task.folder / "val")): guess
        for path, guess in zip(table["path"], table["prediction"], strict=True)
    }, seconds


def timm_command(
    task: Task, seed: int, place: Path, *, lr: float, epochs: int, script: Path, weights: Path
) -> list[str]:
    """Return the command that trains with timm's script."""
    command = [sys.executable, str(script), str(task.folder), "--train-split", "train", "--val-split", "val"]
    command += ["--model", "vit_small_patch14_dinov2", "--pretrained", "--pretrained-path", str(weights)]
    command += ["--img-size", str(task.img_size), "--model-kwargs", f"img_size={task.img_size}"]
    command += ["--num-classes", str(len(set(task.truth.values())))]
    command += ["--opt", "adamw", "--lr", str(lr), "--weight-decay", "0.05", "--layer-decay", "0.75", "-b", "32"]
    command += ["--epochs", str(epochs), "--warmup-epochs", str(min(1, epochs - 1)), "--sched-on-updates"]
    command += ["--min-lr", "0", "--cooldown-epochs", "0", "--scale", "0.35", "1.0", "--hflip", str(task.hflip)]
    command += ["--smoothing", "0.1", "--color-jitter", "0", "--crop-pct", "1.0", "--clip-grad", "1.0"]
    command += ["--seed", str(seed), "--workers", "0", "--no-prefetcher", "--device", "cpu", "--checkpoint-hist", "1"]
    return [*command, "--output", str(place.parent), "--experiment", place.name]


def timm_score(task: Task, place: Path) -> None:
    """Write the predictions of what timm's script trained."""
    score = [sys.executable, str(PEERS / "timm_predict.py"), "--data", str(task.folder)]
    score += ["--checkpoint", str(place / "last.pth.tar"), "--img-size", str(task.img_size)]
    run([*score, "--output", str(place.with_suffix(".json"))], place.with_suffix(".score.log"))


def timm_run(task: Task, seed: int, place: Path, *, lr: float, epochs: int, script: Path, weights: Path) -> float:
    """Train with timm's script, then write its predictions."""
    command = timm_command(task, seed, place, lr=lr, epochs=epochs, script=script, weights=weights)
    seconds = run(command, place.with_suffix(".log"))
    timm_score(task, place)
    return seconds


def hf_command(task: Task, seed: int, place: Path, *, lr: float, epochs: int, weights: Path) -> list[str]:
    """Return the command that trains with transformers' Trainer and writes its predictions."""
    command = [sys.executable, str(PEERS / "hf_trainer.py"), "--data", str(task.folder), "--weights", str(weights)]
    command += ["--output", str(place.with_suffix(".json")), "--img-size", str(task.img_size), "--lr", str(lr)]
    return [*command, "--epochs", str(epochs), "--hflip", str(task.hflip), "--seed", str(seed)]


def hf_run(task: Task, seed: int, place: Path, *, lr: float, epochs: int, weights: Path) -> float:
    """Train with transformers' Trainer."""
    command = hf_command(task, seed, place, lr=lr, epochs=epochs, weights=weights)
    return run(command, place.with_suffix(".log"))


def peer_weights(work: Path) -> dict[str, Path]:
    """Return the demo weights as timm and transformers read them, converted once."""
    weights = {name: work / f"weights-{name}" for name in ("timm", "hf_dinov2")}
    for name, folder in weights.items():
        if not folder.exists():
            convert_checkpoint("demo", folder, to=name, verify=False)
    return weights


class Book:
    """The results so far, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def find(self, **keys: Any) -> dict[str, Any] | None:
        """Return the row with these values, if it is there."""
        return next((row for row in self.rows if all(row.get(key) == value for key, value in keys.items())), None)

    def add(self, task: Task, method: str, setting: str, seed: int, make: Callable[[], tuple[Any, float]]) -> None:
        """Make a result unless it is there."""
        keys = {"data": task.name, "method": method, "setting": setting, "seed": seed}
        if self.find(**keys):
            return
        guesses, seconds = make()
        right = [guesses[name] == label for name, label in task.truth.items()]
        row = keys | {"accuracy": sum(right) / len(right), "seconds": seconds, "right": [int(one) for one in right]}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{task.name:<12} {method:<42} {setting:<28} seed {seed}  {row['accuracy']:.1%}  {seconds:.0f} s",
            flush=True,
        )

    def best_setting(self, task: Task, method: str) -> str:
        """Return the setting with the best accuracy on val."""
        rows = [row for row in self.rows if row["data"] == task.name and row["method"] == method]
        return str(max(rows, key=lambda row: row["accuracy"])["setting"])


def sweep(  # noqa: PLR0917 - passed on as they come
    book: Book,
    task: Task,
    method: str,
    rates: tuple[float, ...],
    seeds: range,
    train: Callable[..., float],
    epochs: int,
) -> None:
    """Try every rate on the first seed, and the best one on the others."""
    settings = {f"lr {rate:g}, {epochs} epochs": rate for rate in rates}

    def make(setting: str, seed: int) -> tuple[Any, float]:
        rate = f"{settings[setting]:.0e}"  # without a dot, which would be taken for a suffix
        place = task.work / f"{method.split(maxsplit=1)[0]}-{task.name}-{rate}-{seed}"
        seconds = train(task, seed, place, lr=settings[setting], epochs=epochs)
        return json.loads(place.with_suffix(".json").read_text(encoding="utf-8")), seconds

    for setting in settings:
        book.add(task, method, setting, seeds[0], lambda setting=setting: make(setting, seeds[0]))
    best = book.best_setting(task, method)
    for seed in seeds[1:]:
        book.add(task, method, best, seed, lambda seed=seed: make(best, seed))


def baselines(book: Book, task: Task) -> None:
    """Score the classical methods, which have no seed that matters."""
    splits = load_splits(root=task.folder)
    if splits.val is None:
        raise SystemExit(f"{task.folder} has no val/")
    names = [str(Path(splits.val.name(index)).relative_to(task.folder / "val")) for index in range(len(splits.val))]
    if book.find(data=task.name, method="frozen class token + logistic regression"):
        return
    for result in measure(splits.train, splits.val, img_size=task.img_size):
        guesses = {name: splits.class_names[guess] for name, guess in zip(names, result.guesses, strict=True)}
        book.add(task, result.method, result.chosen, 0, lambda: (guesses, result.seconds))  # noqa: B023 - called at once


def task_of(name: str, place: str, seconds: float, work: Path) -> Task:
    """Return the task of FOLDER[:IMG_SIZE[:HFLIP]]: 98 pixels and flips where it does not say."""
    folder, *numbers = place.split(":")
    size, hflip = [*numbers, *("98", "0.5")[len(numbers) :]]
    return Task(name, Path(folder).resolve(), int(size), float(hflip), seconds, work)


def tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """Yield the data sets of the command line; the quickstart's digits without any."""
    given = arguments.data or [f"digits={write_demo_digits('quickstart_images')}:56:0"]
    for text in given:
        name, _, rest = text.partition("=")
        yield task_of(name, rest, arguments.seconds, arguments.output.parent)


def summary(book: Book) -> list[str]:
    """Return the table: mean accuracy by data set, and the paired comparison with ours."""
    names = list(dict.fromkeys(row["data"] for row in book.rows))
    lines = [
        "| method | " + " | ".join(names) + " | ours right, other wrong : reverse | p |",
        "| --- " * (len(names) + 3) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in book.rows):
        cells, won, lost = [], 0, 0
        for name in names:
            rows = [row for row in book.rows if row["data"] == name and row["method"] == method]
            if rows:
                setting = max(rows, key=lambda row: row["accuracy"])["setting"]
                rows = [row for row in rows if method == OURS or row["setting"] == setting]
                accuracies = [row["accuracy"] for row in rows]
                spread = f" ({min(accuracies):.1%} to {max(accuracies):.1%})" if len(rows) > 1 else ""
                cells.append(f"{sum(accuracies) / len(accuracies):.1%}{spread}")
            else:
                cells.append("")
            for row in rows:
                mine = book.find(data=name, method=OURS, seed=row["seed"])
                pairs = list(zip(mine["right"], row["right"], strict=True)) if mine else []
                won += sum(a > b for a, b in pairs)
                lost += sum(a < b for a, b in pairs)
        p = f"{binomtest(won, won + lost).pvalue:.1g}" if won + lost else ""
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {won} : {lost} | {p} |")
    return lines


def main() -> None:
    """Read the command line, make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", action="append", metavar="NAME=FOLDER[:IMG_SIZE[:HFLIP]]", help="may be repeated")
    parser.add_argument("--seconds", type=float, default=120, help="T, wall seconds of one training")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--timm-train", type=Path, help="timm's train.py")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="of the work; the table is of all")
    parser.add_argument("--output", type=Path, default=Path("runs/small_folders/results.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    book, seeds = Book(arguments.output), range(arguments.num_seeds)
    for task in tasks(arguments):
        if "classical" in arguments.only:
            baselines(book, task)
        if not {"timm", "trainer"}.isdisjoint(arguments.only):
            peers(book, task, seeds, arguments.timm_train, arguments.only)
        if "ours" in arguments.only:
            for seed in seeds:
                place = task.work / f"ours-{task.name}-{seed}"
                book.add(task, OURS, f"{task.seconds:g} s", seed, lambda: ours(task, seed, place))  # noqa: B023
    print("\n".join(summary(book)))


def peers(book: Book, task: Task, seeds: range, timm_train: Path | None, parts: Sequence[str]) -> None:
    """Make the results of timm's and transformers' trainers, from the same weights, in T seconds each."""
    weights = peer_weights(task.work)
    rate = measured_rate(task)
    epochs = max(1, round((task.seconds - START_UP_SECONDS) * rate / task.num_train))
    print(
        f"{task.name}: {rate:.0f} images/s at {task.img_size} px, so peers get {epochs} epochs of {task.num_train}",
        flush=True,
    )
    if timm_train is not None and "timm" in parts:
        file = weights["timm"] / "model.safetensors"

        def train_timm(*args: Any, **kwargs: Any) -> float:
            return timm_run(*args, **kwargs, script=timm_train, weights=file)

        sweep(book, task, "timm train.py, lr swept", TIMM_RATES, seeds, train_timm, epochs)

    def train_hf(*args: Any, **kwargs: Any) -> float:
        return hf_run(*args, **kwargs, weights=weights["hf_dinov2"])

    if "trainer" in parts:
        sweep(book, task, "transformers Trainer, lr swept", HF_RATES, seeds, train_hf, epochs)


if __name__ == "__main__":
    main()
