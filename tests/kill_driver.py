"""Lives of a tiny run of `fit`, each in a process of its own that can be killed at any point; started by test_kills.py.

The driver imports everything once and forks, so that a life costs a fraction of a second. It prints what happened to
each as a line of JSON. A point is the moment before or after an event: a file written, synced, renamed or removed, a
row, a step, an evaluation; in the middle of a weights file, too. By hand, every third point of a run:

    PYTHONPATH=tests python tests/kill_driver.py FOLDER '[{"asynchronous": false, "every": 3}]'
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from run_helpers import everything
from training_helpers import Run, options_of, plan_of, scorer, steps_of, tiny_vit

from vit_finetune.common.errors import WorkError
from vit_finetune.training import checkpoint as store
from vit_finetune.training import find_checkpoint, restore
from vit_finetune.training.averages import WeightAverage
from vit_finetune.training.journal import Journal

for module in ("rich.console", "torch._dynamo"):  # what a run imports on its way: here once, not in every life
    importlib.import_module(module)


class Bomb:
    """Counts the points that a life passes, and kills the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.passed: list[str] = []

    def tick(self, what: str, act: Callable[[], object] = lambda: None) -> None:
        """Pass a point; at the chosen one, `act` and die."""
        if len(self.passed) == self.at:
            act()
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed.append(what)

    def around(self, owner: Any, name: str, what: str) -> None:
        """Make a function of `owner` pass two points."""
        work = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.tick(f"before {what}")
            result = work(*arguments, **options)
            if what == "weights":
                path = arguments[1]
                self.tick("inside weights", lambda: os.truncate(path, path.stat().st_size // 2))
            self.tick(f"after {what}")
            return result

        setattr(owner, name, call)

    def arm(self) -> None:
        """Watch what touches the disk, and the rows."""
        for owner, name, what in (
            *((store, "save_file", "weights"), (Path, "write_text", "text"), (os, "fsync", "fsync")),
            *(
                (os, "rename", "rename"),
                (os, "replace", "replace"),
                (shutil, "rmtree", "remove"),
                (Journal, "write", "row"),
            ),
        ):
            self.around(owner, name, what)


def life(run_dir: Path, bomb: Bomb, *, asynchronous: bool, batches: Any = steps_of) -> None:
    """Start the run, or go on with it, as `finetune` does."""
    torch.set_num_threads(1)
    bomb.arm()
    noisy: dict[str, Any] = {"drop_path_rate": 0.3, "proj_drop_rate": 0.2, "patch_drop_rate": 0.25}
    run, progress = Run.start(run_dir, tiny_vit(**noisy)), None
    average = WeightAverage(run.model, 0.9)
    lines: list[str] = []
    run.console.say = lambda *new: lines.extend(new)  # type: ignore[method-assign]
    if any(run_dir.joinpath("checkpoints").iterdir()) or (run_dir / "metrics.jsonl").is_file():
        progress = restore(
            run_dir,
            find_checkpoint(run_dir),
            model=run.model,
            optimizer=run.optimizer,
            accelerator=run.accelerator,
            console=run.console,
            metric="accuracy",
            keep_last=2,
            keep_threads=False,
            average=average,
        )
    (run_dir.parent / f"{run_dir.name}.said").write_text("\n".join(lines))
    score = scorer()

    def evaluate(model: Any) -> Any:
        bomb.tick("before evaluation")
        result = score(model)
        bomb.tick("after evaluation")
        return result

    bomb.around(run.optimizer, "step", "step")
    run.fit(
        plan_of(num_steps=5, evaluate_every=2),
        options_of(keep_last=2, asynchronous=asynchronous),
        batches=batches(progress.step if progress else 0),
        evaluate=evaluate,
        progress=progress,
        average=average,
    )


def lived(work: Callable[[], object]) -> int:
    """Do work in a forked process; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except WorkError:
            os._exit(1)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def result_of(run_dir: Path) -> dict[str, bytes]:
    """Return all that a run left but its clock."""
    return {name: content for name, content in everything(run_dir).items() if name != "timing.jsonl"}


class Story:
    """An undisturbed run, and what disturbed ones come to."""

    def __init__(self, root: Path, *, asynchronous: bool) -> None:
        self.root, self.asynchronous = root, asynchronous
        self.whole = root / "whole"

        def undisturbed() -> None:
            bomb = Bomb(None)
            life(self.whole, bomb, asynchronous=asynchronous)
            (root / "points.json").write_text(json.dumps(bomb.passed))

        assert lived(undisturbed) == 0
        self.points: list[str] = json.loads((root / "points.json").read_text())

    def born(self, run_dir: Path, *, at: int | None = None, batches: Any = steps_of) -> int:
        """Live once; return how it ended."""
        return lived(lambda: life(run_dir, Bomb(at), asynchronous=self.asynchronous, batches=batches))

    def told(self, run_dir: Path, how: str, what: str, codes: list[int]) -> None:
        """Say how a disturbed run ended and whether it is the undisturbed one, and forget it."""
        same = result_of(run_dir) == result_of(self.whole)
        said = (run_dir.parent / f"{run_dir.name}.said").read_text().splitlines()
        told = {"asynchronous": self.asynchronous, "how": how, "what": what, "codes": codes, "same": same, "said": said}
        print(json.dumps(told))
        shutil.rmtree(run_dir)

    def one_of_each(self, seed: int) -> list[int]:
        """Draw a point of each kind."""
        rng, places = random.Random(seed), dict[str, list[int]]()
        for number, what in enumerate(self.points):
            places.setdefault(what, []).append(number)
        return [rng.choice(numbers) for numbers in places.values()]

    def killed_at(self, points: list[int]) -> None:
        """Kill a run at each of these points, then let it go on."""
        for point in points:
            run_dir = self.root / str(point)
            codes = [self.born(run_dir, at=point), self.born(run_dir)]
            self.told(run_dir, "point", self.points[point], codes)

    def killed_often(self, seed: int, kills: int) -> None:
        """Kill one run again and again, at points of each life that are drawn."""
        rng, run_dir = random.Random(seed), self.root / f"often{seed}"
        codes = [self.born(run_dir, at=rng.randrange(len(self.points))) for _ in range(kills)]
        self.told(run_dir, "often", f"{kills} kills", [*codes, self.born(run_dir)])

    def disk_fills(self, sizes: list[int]) -> None:
        """Let no file grow beyond so many bytes from step 2 on, as a quota does; then let the run go on with room."""
        for size in sizes:

            def batches(first: int, size: int = size) -> Iterator[Any]:
                for step, batch in enumerate(steps_of(first), start=first):
                    if step == 2:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
                    yield batch

            run_dir = self.root / f"full{size}"
            self.told(run_dir, "disk", f"{size} bytes", [self.born(run_dir, batches=batches), self.born(run_dir)])

    def damaged(self, seeds: list[int]) -> None:
        """Stop after step 4, harm the newest checkpoint in a way that is drawn, then let the run go on."""
        for seed in seeds:
            rng, run_dir = random.Random(seed), self.root / f"damaged{seed}"
            last = max(number for number, what in enumerate(self.points) if what == "before step")
            codes = [self.born(run_dir, at=last)]
            folder = run_dir / "checkpoints" / store.folder_name(4)
            harmed = [harm(path, rng) for path in rng.sample(sorted(folder.iterdir()), rng.randint(1, 3))]
            self.told(run_dir, "damage", " ".join(harmed), [*codes, self.born(run_dir)])


def harm(path: Path, rng: random.Random) -> str:
    """Flip a bit of a file, cut it, or remove it; return its name."""
    content, place = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size)
    how = rng.choice(("flip", "cut", "remove"))
    if how == "flip":
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif how == "cut":
        os.truncate(path, place)
    else:
        path.unlink()
    return path.name


def main(root: Path, wanted: list[dict[str, Any]]) -> None:
    """Tell stories, and the points of each."""
    for number, arguments in enumerate(wanted):
        folder = root / str(number)
        folder.mkdir()
        story = Story(folder, asynchronous=arguments["asynchronous"])
        if "every" in arguments:
            story.killed_at(list(range(0, len(story.points), arguments["every"])))
        if "one_of_each" in arguments:
            story.killed_at(story.one_of_each(arguments["one_of_each"]))
        for seed, kills in arguments.get("often", []):
            story.killed_often(seed, kills)
        story.disk_fills(arguments.get("sizes", []))
        story.damaged(arguments.get("damage", []))
        print(json.dumps({"asynchronous": story.asynchronous, "how": "whole", "points": story.points}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
