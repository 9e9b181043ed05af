"""What is exact about four ways to fine-tune: Accelerate's guide, transformers' Trainer, timm's train.py, and ours.

    python benchmarks/exactness.py [--timm-train PATH/TO/train.py] [--kills 8] [--output runs/exactness.json]

Each trains a tiny ViT on 64 made pictures, with random augmentation on, and is

- killed (SIGKILL) after its first checkpoint, 3 of 8 steps into the first of two epochs, and resumed as it documents:
  which samples of that epoch were seen twice, which never, and are the final weights those of the undisturbed run;
- asked for its figures of 65 held-out pictures on 3 processes (gloo), and on one;
- killed at moments spread over the save of its second checkpoint: before it changes something in its folder, and in
  the middle of a file of tensors. Does it go on by itself, from a whole checkpoint?

All lives are forked from this process (peers/lives.py); peers/exact_*.py say how each is used. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers.exact_accelerate import AccelerateSide
from peers.exact_ours import OurSide, warm_up
from peers.exact_timm import TimmSide
from peers.exact_trainer import TrainerSide
from peers.few_pictures import BATCH, NUM_TRAIN, SAVE_EVERY, make_pictures
from peers.lives import Death, Side, Watch, lived
from torch import Tensor

STEPS = NUM_TRAIN // BATCH  # of an epoch
PACKAGES = ("torch", "accelerate", "transformers", "timm", "vit_finetune")
_ROUNDING = 1e-6  # figures that differ by less are summed in another order


class Story:
    """The lives of one side's runs, in a folder of their own."""

    def __init__(self, side: Side, folder: Path) -> None:
        self.side, self.folder = side, folder
        folder.mkdir()

    def live(self, name: str, *, resume: bool = False, keep: int | None = None, death: Death | None = None) -> int:
        """Let a run live once, or go on; return how that life ended."""

        def life() -> None:
            torch.set_num_threads(1)
            (self.folder / name).mkdir(exist_ok=True)
            watch = Watch(self.folder / name, self.folder / f"{name}.seen", death)
            watch.arm()
            self.side.train(self.folder / name, watch, resume=resume, keep=keep)
            (self.folder / f"{name}.points").write_text(json.dumps(watch.points), encoding="utf-8")

        return lived(life, self.folder / f"{name}.log")

    def must(self, name: str, code: int = 0, **options: Any) -> None:
        """Let a run live, and see that it ends as it should."""
        found = self.live(name, **options)
        if found != code:
            said = (self.folder / f"{name}.log").read_text(encoding="utf-8")[-3000:]
            raise SystemExit(f"{self.side.name}: {name} ended with {found} and not with {code}\n{said}")

    def seen(self, name: str) -> list[list[int]]:
        """Return the samples of each step of all lives of a run."""
        lines = (self.folder / f"{name}.seen").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def cut_and_resumed(self, name: str, *, after: int) -> dict[str, Tensor]:
        """Kill a run as the step after a checkpoint begins, resume it, and return its final weights."""
        self.must(name, -9, death=Death(after, None))
        self.must(name, resume=True)
        return self.side.weights(self.folder / name)

    def resume(self) -> dict[str, Any]:
        """Compare a run that is resumed within its first epoch with one that is not disturbed."""
        self.must("whole")
        whole, resumed = self.side.weights(self.folder / "whole"), self.cut_and_resumed("cut", after=SAVE_EVERY)
        steps = self.seen("cut")
        # Every side ends with a whole last epoch; what came before is the one that was cut.
        first = [sample for step in steps[: len(steps) - STEPS] for sample in step]
        return {
            "seen_twice": len(first) - len(set(first)),
            "never_seen": NUM_TRAIN - len(set(first)),
            "steps": len(steps),
            "same_weights": same(whole, resumed),
            "largest_difference": max((whole[name] - resumed[name]).abs().max().item() for name in whole),
        }

    def kills(self, keep: int | None, number: int) -> dict[str, Any]:
        """Kill runs within the save of their second checkpoint; count what becomes of them."""
        second = 2 * SAVE_EVERY
        known = [self.side.weights(self.folder / name) for name in ("whole", "cut")]
        known.append(self.cut_and_resumed(f"second{keep}", after=second))
        self.must(f"points{keep}", keep=keep)
        told = json.loads((self.folder / f"points{keep}.points").read_text(encoding="utf-8"))
        points = [what for step, what in told if step == second]
        counts = {"went_on": 0, "went_on_from_less": 0, "older_by_hand": 0, "lost": 0}
        ends = []
        chosen = sorted({round(index * (len(points) - 1) / max(1, number - 1)) for index in range(number)})
        for point in chosen:
            name = f"killed{keep}_{point}"
            self.must(name, -9, keep=keep, death=Death(second, point))
            saves = len(list((self.folder / name).glob(self.side.saves)))
            if self.live(name, keep=keep, resume=True) == 0:
                weights = self.side.weights(self.folder / name)
                end = "went_on" if any(same(weights, one) for one in known) else "went_on_from_less"
            else:
                end = "older_by_hand" if saves > 1 else "lost"
            counts[end] += 1
            ends.append({"point": points[point], "end": end})
            shutil.rmtree(self.folder / name)
        return {"keep": keep, "points": len(points), "kills": len(chosen), **counts, "ends": ends}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Say whether tensors are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def measured(side: Side, folder: Path, kills: int) -> dict[str, Any]:
    """Return all figures of a side."""
    started, story = time.monotonic(), Story(side, folder)
    found: dict[str, Any] = {"name": side.name, "resume": story.resume()}
    told, exact = side.scored(folder)
    found["scored"] = {"told": told, "one_process": exact}
    found["kills"] = [story.kills(keep, kills) for keep in side.keeps]
    return {**found, "seconds": time.monotonic() - started}


def row(found: dict[str, Any]) -> str:
    """Return a side's row of the table."""
    resume = found["resume"]
    bits = "yes" if resume["same_weights"] else f"no, up to {resume['largest_difference']:.1e} apart"
    seen = f"{resume['seen_twice']} / {resume['never_seen']}"
    return f"| {found['name']} | {seen} | {bits} | {mistakes(found['scored'])} | {survival(found['kills'])} |"


def mistakes(scored: dict[str, dict[str, float]]) -> str:
    """Return by how much the figures of three processes are wrong; those of a second way follow its name."""
    told, exact = scored["told"], scored["one_process"]
    said = {"": list[str](), "gather ": list[str]()}
    for name, value in exact.items():
        way = "gather " if name.startswith("gather ") else ""
        error = told[name] - value
        if abs(error) > _ROUNDING or not name.endswith("num_counted"):
            said[way].append(f"{name.removeprefix(way)} {f'{error:+.2g}' if abs(error) > _ROUNDING else '0'}")
    usual, second = said.values()
    return ", ".join(usual) + (f" (with gather alone: {', '.join(second)})" if second else "")


def survival(kills: list[dict[str, Any]]) -> str:
    """Return what became of killed saves, for each number of checkpoints that are kept."""
    said = []
    for one in kills:
        keeps = "default" if one["keep"] is None else f"keeping {one['keep']}"
        names = {
            "went_on_from_less": "from an incomplete one",
            "older_by_hand": "by hand from an older",
            "lost": "lost",
        }
        rest = ", ".join(f"{one[key]} {name}" for key, name in names.items() if one[key])
        said.append(f"{keeps}: {one['went_on']} of {one['kills']}" + (f" ({rest})" if rest else ""))
    return "; ".join(said) or "as above"


def main() -> None:
    """Measure every side, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, which its package does not hold")
    parser.add_argument("--kills", type=int, default=8, help="kills for each number of checkpoints that are kept")
    parser.add_argument("--only", help="sides whose name holds this")
    parser.add_argument("--output", type=Path, default=Path("runs/exactness.json"), help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        make_pictures(folder / "pictures")
        make = [AccelerateSide, partial(AccelerateSide, seedable=True), TrainerSide, OurSide]
        if arguments.timm_train is not None:
            make.insert(3, partial(TimmSide, script=arguments.timm_train.resolve()))
        sides = [made(folder / "pictures") for made in make]
        found = []
        for number, side in enumerate(side for side in sides if (arguments.only or "") in side.name):
            found.append(measured(side, folder / str(number), arguments.kills))
            print(f"{side.name}: {found[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    head = (
        f"seen twice / never, of {NUM_TRAIN}",
        "final weights to the bit",
        "metric error, 3 processes, 65 pictures",
        "goes on by itself after a kill within a save",
    )
    print("| | " + " | ".join(head) + " |\n| --- |" + " --- |" * len(head))
    print("\n".join(row(one) for one in found))
    versions = {name: version(name) for name in PACKAGES}
    print("\n" + ", ".join(f"{name} {number}" for name, number in versions.items()))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"versions": versions, "sides": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
