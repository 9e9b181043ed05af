"""Kill a run again and again at random moments, let it go on each time, and compare it with an undisturbed one.

    python benchmarks/soak.py [--kills 50] [--minutes 10] [--seed 0] [--output runs/soak.json]

A run is all of `train --resume`, from pictures to the model folder, with augmentation, Mixup, DropPath and an average
of the weights. Each of its lives is a forked process that gets SIGKILL after a time that is drawn; what it was doing is
read from memory that both share. When a run comes to its end, its weights, rows, figures and checkpoints have to be
those of the undisturbed run, byte for byte, and the next run starts; every other run saves behind training.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers.exact_ours import warm_up
from peers.few_pictures import IMG_SIZE, make_pictures
from peers.lives import ended, lived, quietly_forked

from vit_finetune import finetune
from vit_finetune.training import checkpoint as store
from vit_finetune.training import loop

PHASES = ("start-up", "step", "evaluation", "between steps", "after training")
SAVING = "save"


class Blackboard:
    """Says in shared memory what a life is doing."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2)

    def wipe(self) -> None:
        """Say that a life starts up."""
        self._memory[:] = b"\0\0"

    def read(self) -> str:
        """Return what the life does, or did last; a save counts before what training does beside it."""
        return SAVING if self._memory[1] else PHASES[self._memory[0]]

    def watch(self) -> None:
        """Let what this process does be said from now on."""
        for name, phase in (("train_step", "step"), ("score_and_compare", "evaluation")):
            setattr(loop._Loop, name, self._telling(getattr(loop._Loop, name), 0, phase))
        loop._Loop.run = self._telling(loop._Loop.run, 0, "between steps", after="after training")  # type: ignore[method-assign]
        for name in ("save_checkpoint", "settle"):
            setattr(store, name, self._telling(getattr(store, name), 1, 1, after=0))

    def _telling(self, work: Callable[..., Any], place: int, during: Any, *, after: Any = "between steps") -> Any:
        first, last = (PHASES.index(value) if isinstance(value, str) else value for value in (during, after))

        def told(*arguments: Any, **options: Any) -> Any:
            self._memory[place] = first
            try:
                return work(*arguments, **options)
            finally:
                self._memory[place] = last

        return told


def config_of(pictures: Path, run_dir: Path, *, asynchronous: bool) -> dict[str, Any]:
    """Return a run of 24 steps that saves every second and scores every fourth."""
    return {
        "model": {
            "name": "vit_tiny_patch16_224",
            "pretrained": None,
            "img_size": IMG_SIZE,
            "drop_path_rate": 0.2,
            "overrides": {"depth": 2, "embed_dim": 48},
        },
        "data": {"root": str(pictures), "num_workers": 0, "color_jitter": 0.3, "random_erasing": 0.2},
        "train": {"steps": 24, "global_batch_size": 8, "mixup_alpha": 0.8, "ema_decay": 0.8},
        "evaluation": {"every_steps": 4},
        "checkpoint": {"every_steps": 2, "asynchronous": asynchronous},
        "run": {"dir": str(run_dir), "num_threads": 1, "device": "cpu"},
    }


def kept(run_dir: Path) -> dict[str, bytes]:
    """Return what a run leaves, but clocks, what names its own folder or settings, and the list of its lives."""
    skipped = ("timing.jsonl", "run.log", "config.yaml", "environment.json", "report.html", "test_openings.jsonl")
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.name not in skipped)
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


class Soak:
    """Runs that are killed until there were so many kills, or the time is over."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.rng, self.board, self.kills = random.Random(arguments.seed), Blackboard(), Counter[str]()
        self.started, self.runs, self.different = time.monotonic(), 0, list[str]()
        make_pictures(folder / "pictures")
        warm_up()
        began = time.monotonic()
        if lived(self.life(folder / "whole", asynchronous=False), folder / "whole.log") != 0:
            raise SystemExit((folder / "whole.log").read_text(encoding="utf-8")[-3000:])
        self.undisturbed = self.span = time.monotonic() - began  # lives are killed within the latter
        self.whole = kept(folder / "whole")

    def life(self, run_dir: Path, *, asynchronous: bool) -> Callable[[], None]:
        """Return what a life of a run does: start it, or go on."""

        def work() -> None:
            torch.set_num_threads(1)
            self.board.watch()
            finetune(config_of(self.folder / "pictures", run_dir, asynchronous=asynchronous), resume=True)

        return work

    def is_over(self) -> bool:
        """Say whether there were enough kills, or the time is over."""
        late = time.monotonic() - self.started > 60 * self.arguments.minutes
        return late or self.kills.total() >= self.arguments.kills

    def run(self) -> None:
        """Live through runs, each to its end; the last one is no longer killed once all is over."""
        while not self.is_over():
            run_dir = self.folder / f"run{self.runs}"
            work = self.life(run_dir, asynchronous=self.runs % 2 == 1)
            while self.lives_and_is_killed(work, run_dir.with_suffix(".log")):
                pass
            found = kept(run_dir)
            names = sorted(name for name in found | self.whole if found.get(name) != self.whole.get(name))
            self.different += [f"run {self.runs}: {name}" for name in names]
            shutil.rmtree(run_dir)
            self.runs += 1

    def lives_and_is_killed(self, work: Callable[[], None], said: Path) -> bool:
        """Let a life begin and kill it at a moment that is drawn; false where it came to its end before."""
        self.board.wipe()
        delay, began = self.rng.uniform(0, self.span), time.monotonic()
        child = quietly_forked(work, said)
        if self.is_over():
            code = ended(child)
        else:
            time.sleep(delay)
            where = self.board.read()
            os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its own
            code = ended(child)
            if code == -signal.SIGKILL:
                self.kills[where] += 1
                return True
        if code != 0:
            raise SystemExit(f"a life ended with {code}:\n{said.read_text(encoding='utf-8')[-3000:]}")
        self.span = 0.2 * self.span + 0.8 * min(self.span, time.monotonic() - began)  # what is left of a run is shorter
        return False


def main() -> None:
    """Soak, print what became of it, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10, help="no kill after that; the run comes to its end")
    parser.add_argument("--seed", type=int, default=0, help="of the times after which a life is killed")
    parser.add_argument("--output", type=Path, default=Path("runs/soak.json"), help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary).resolve(), arguments)
        soak.run()
    told = {
        "kills": soak.kills.total(),
        "phases": dict(soak.kills.most_common()),
        "runs": soak.runs,
        "different": soak.different,
        "files": len(soak.whole),
        "seconds": time.monotonic() - soak.started,
        "seconds_undisturbed": soak.undisturbed,
    }
    print(f"{told['kills']} kills in {told['runs']} runs, {told['seconds']:.0f} s")
    print("| killed in | kills |\n| --- | --- |")
    print("\n".join(f"| {phase} | {count} |" for phase, count in soak.kills.most_common()))
    print(f"files that differ from the undisturbed run's {len(soak.whole)}: {soak.different or 'none'}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if soak.different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
