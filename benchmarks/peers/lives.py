"""Lives of a training run in forked processes that can be killed wherever they touch their folder: see exactness.py.

A point is the moment before the process opens a file of its folder to write, makes, renames, links or removes one
(Python's audit events tell, whoever does it), and the middle of each file of tensors, which is then cut to half.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import safetensors.torch
import torch
from torch import Tensor

_CHANGES = {"os.mkdir": 2, "os.rename": 2, "os.link": 2, "os.remove": 1, "os.rmdir": 1}  # -> where a dir_fd stands


class Death(NamedTuple):
    """Where a life ends: once so many steps have begun, at a point before the next one or (None) as that begins."""

    step: int
    point: int | None


class Watch:
    """Watches a run from inside its process: notes the samples of each step, and kills at a chosen point.

    Args:
        run_dir: what the run writes below.
        notes: file to which each step adds a line.
        death: where to die; None lives to the end.
    """

    def __init__(self, run_dir: Path, notes: Path, death: Death | None = None) -> None:
        self._folder, self._notes, self._death = f"{run_dir}{os.sep}", notes, death
        self._steps = self._passed = 0
        self.points: list[tuple[int, str]] = []

    def step(self, samples: Sequence[int]) -> None:
        """Note that a step begins, with the samples of its batch."""
        if self._death == (self._steps, None):
            os.kill(os.getpid(), signal.SIGKILL)
        self._steps, self._passed = self._steps + 1, 0
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(list(samples)) + "\n")

    def arm(self) -> None:
        """Watch the folder from now on, to the end of the process."""
        for module, name in ((torch, "save"), (safetensors.torch, "serialize_file")):
            setattr(module, name, self._with_middle(getattr(module, name)))
        sys.addaudithook(self._heard)

    def _point(self, what: str, act: Callable[[], object] = lambda: None) -> None:
        if self._death == (self._steps, self._passed):
            act()
            os.kill(os.getpid(), signal.SIGKILL)
        self._passed += 1
        self.points.append((self._steps, what))

    def _is_inside(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._folder)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if self._is_inside(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._point(f"open {os.fspath(path).removeprefix(self._folder)}")
        elif event in _CHANGES:
            path, folder = arguments[0], arguments[_CHANGES[event]]
            if self._is_inside(path) or folder not in (-1, None):  # relative to a folder: a tree is removed
                self._point(f"{event} {os.fspath(path).removeprefix(self._folder)}")

    def _with_middle(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(*arguments: Any, **options: Any) -> Any:
            path = arguments[1]
            if self._is_inside(path):
                self._point(f"before {os.fspath(path).removeprefix(self._folder)}")
            result = write(*arguments, **options)
            if self._is_inside(path):
                self._point(
                    f"middle of {os.fspath(path).removeprefix(self._folder)}",
                    lambda: os.truncate(path, Path(path).stat().st_size // 2),
                )
            return result

        return writing


class Side(Protocol):
    """A way to train the few pictures: batches of 8, two epochs, a checkpoint after every third step."""

    name: str
    keeps: tuple[int | None, ...]  # how many checkpoints may be asked to stay; None is the default
    saves: str  # what names a checkpoint below a run's folder, as a pattern

    def train(self, run_dir: Path, watch: Watch, *, resume: bool, keep: int | None) -> None:
        """Train to the end, with random augmentation, as its documentation says.

        Args:
            run_dir: its folder.
            watch: told of each step.
            resume: go on with the newest checkpoint, by the documented way.
            keep: checkpoints that stay; None leaves the default.
        """

    def weights(self, run_dir: Path) -> dict[str, Tensor]:
        """Return the final weights."""

    def scored(self, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
        """Return figures of the held-out pictures, told by three processes and by one, after the same training."""


def forked(work: Callable[[], object]) -> int:
    """Do work in a forked process; return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def quietly_forked(work: Callable[[], object], said: Path) -> int:
    """Do work in a forked process whose output is added to a file; return its number."""

    def quietly() -> None:
        sink = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        work()

    return forked(quietly)


def lived(work: Callable[[], object], said: Path) -> int:
    """Do work in a forked process whose output is added to a file; return how it ended."""
    return ended(quietly_forked(work, said))


def scored_on(
    worlds: tuple[int, int], score: Callable[[Path], object], folder: Path, name: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures that `score` writes into the file it is given, in one number of processes and in another."""
    found: list[dict[str, float]] = []
    for world in worlds:
        file = folder / f"{name}{world}.json"
        in_processes(world, partial(score, file), folder / f"{name}.log")
        found.append(json.loads(file.read_text(encoding="utf-8")))
    return found[0], found[1]


def in_processes(world: int, work: Callable[[], object], said: Path) -> None:
    """Do work in forked processes that find each other as torchrun's do.

    Raises:
        RuntimeError: one of them failed.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    def member(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        work()

    def all_of_them() -> None:
        children = [forked(lambda rank=rank: member(rank)) for rank in range(world)]  # type: ignore[misc]
        codes = [ended(child) for child in children]
        if any(codes):
            raise SystemExit(1)

    if lived(all_of_them, said) != 0:
        raise RuntimeError(f"a run on {world} processes failed:\n{said.read_text(encoding='utf-8')[-3000:]}")
