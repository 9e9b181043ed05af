"""The feature cache: folders of arrays, each found again by a key, shared between runs and processes, limited in size.

An entry appears whole, by a rename, or not at all. One process writes an entry; who wants the same one meanwhile waits
for it. The lock is the system's, so it goes with a killed process, and what that left is swept by the next that writes.
When an entry doesn't fit, those used longest ago go; a process that still reads one keeps its pages.

Not here: what is in an entry (features.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.files import sync, write_json

CACHE_VARIABLE = "VIT_FINETUNE_CACHE"
_META = "meta.json"
_TEMPORARY = ".writing"
Shapes = Mapping[str, tuple[int, ...]]


def default_cache_dir() -> Path:
    """Return where features are kept: $VIT_FINETUNE_CACHE, else vit_finetune/ in the user's cache folder."""
    told = os.environ.get(CACHE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(told).expanduser() if told else base / "vit_finetune") / "features"


def cache_key(facts: Mapping[str, Any]) -> str:
    """Return the name of the entry that holds for exactly these facts.

    Args:
        facts: everything that its numbers depend on, as JSON values.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def size_of(shapes: Shapes, dtype: np.dtype[Any]) -> int:
    """Return how many bytes the arrays of an entry take."""
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) * dtype.itemsize


@dataclass(frozen=True)
class FeatureCache:
    """A folder of entries.

    Attributes:
        root: the folder; made when first written to.
        limit: the most bytes that all entries may take together.
    """

    root: Path
    limit: int

    def find(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of an entry, memory-mapped and read-only, and note that it was used; None if there is none.

        Args:
            key: of `cache_key`.
        """
        folder = self.root / key
        try:
            names = json.loads((folder / _META).read_text(encoding="utf-8"))["arrays"]
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
            os.utime(folder)
        except (OSError, ValueError, KeyError):  # not there, or evicted while we looked
            return None
        return arrays

    def check_room(self, sizes: Sequence[int]) -> None:
        """Refuse features that the limit, or the disk, has no room for.

        Args:
            sizes: bytes of each entry that one run needs together.

        Raises:
            RequestError: they don't fit, with what is needed and what there is.
        """
        need = sum(sizes)
        remedy = "choose fewer readout.layers, a smaller readout.grid or readout.dtype float16"
        if need > self.limit:
            raise RequestError(
                f"the features take {_gb(need)}, readout.cache_limit_gb is {_gb(self.limit)}; raise it, or {remedy}"
            )
        existing = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free + sum(size for _, _, size in self._entries())
        if need > free:
            raise RequestError(
                f"the features take {_gb(need)}, the disk of {self.root} has {_gb(free)}; set readout.cache_dir to "
                f"a larger one, or {remedy}"
            )

    @contextmanager
    def writing(self, key: str) -> Iterator[None]:
        """Hold the right to write an entry; waits while another process has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{key}.lock"):
            yield

    def start(self, key: str, shapes: Shapes, dtype: np.dtype[Any], *, keep: Sequence[str] = ()) -> Path:
        """Make room for an entry and return the folder in which `write_rows` fills its arrays; hold `writing`.

        Args:
            key: of `cache_key`.
            shapes: of the arrays, by name.
            dtype: of all arrays.
            keep: entries that must stay, since this run uses them.

        Raises:
            WorkError: the disk is full.
        """
        self._sweep(key)
        self._make_room(size_of(shapes, dtype), keep={key, *keep})
        folder = self.root / f".{key}{_TEMPORARY}"
        folder.mkdir()
        for name, shape in shapes.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
        return folder

    def finish(self, key: str, folder: Path, facts: Mapping[str, Any]) -> None:
        """Let a filled folder appear as the entry of its key.

        Args:
            key: of `cache_key`.
            folder: of `start`.
            facts: what the key was made of, for people.
        """
        names = sorted(path.stem for path in folder.glob("*.npy"))
        for name in names:
            sync(folder / f"{name}.npy")
        write_json(folder / _META, {"arrays": names, "facts": dict(facts)})
        folder.rename(self.root / key)
        sync(self.root)

    def discard(self, folder: Path) -> None:
        """Remove a folder of `start` that did not become an entry; nothing where it did."""
        shutil.rmtree(folder, ignore_errors=True)

    def _entries(self) -> list[tuple[float, Path, int]]:
        """Return last use, folder and bytes of each entry, the one used longest ago first."""
        found = []
        for folder in self.root.glob("[0-9a-f]*"):
            try:
                found.append((folder.stat().st_mtime, folder, sum(path.stat().st_size for path in folder.iterdir())))
            except OSError:  # evicted by another process while we looked
                continue
        return sorted(found)

    def _make_room(self, need: int, *, keep: set[str]) -> None:
        """Remove entries, the one used longest ago first, until `need` bytes fit the limit."""
        entries = self._entries()
        total = sum(size for _, _, size in entries)
        for _, folder, size in entries:
            if total + need <= self.limit:
                return
            if folder.name not in keep:
                _remove(folder)
                total -= size

    def _sweep(self, own: str) -> None:
        """Remove what killed processes left half-written: folders that nobody holds the right to write."""
        for folder in self.root.glob(f".*{_TEMPORARY}"):
            key = folder.name[1 : -len(_TEMPORARY)]
            lock = FileLock(self.root / f".{key}.lock", timeout=0)
            try:
                if key != own:
                    lock.acquire()
                shutil.rmtree(folder, ignore_errors=True)
            except Timeout:
                continue
            finally:
                lock.release()


def _remove(folder: Path) -> None:
    """Remove an entry so that nobody finds half of it."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}{_TEMPORARY}")
    try:
        folder.rename(gone)
    except OSError:  # another process was faster
        return
    shutil.rmtree(gone, ignore_errors=True)


def write_rows(folder: Path, name: str, start: int, rows: np.ndarray) -> None:
    """Write rows of an array of an entry; processes may write other rows at the same time.

    Plain writes, since a full disk ends a process that writes through a memory map.

    Args:
        folder: of `FeatureCache.start`.
        name: of the array.
        start: the first row.
        rows: in the dtype of the array.

    Raises:
        WorkError: the disk is full.
    """
    path = folder / f"{name}.npy"
    try:
        offset = np.load(path, mmap_mode="r").offset + start * rows[:1].nbytes
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(rows).tobytes())
    except OSError as error:
        raise WorkError(f"cannot write the features to {path}: {error.strerror}") from error


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
