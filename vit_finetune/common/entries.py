"""A folder of entries, each found again by a key, shared between runs and processes, limited in size.

An entry appears whole, by a rename, or not at all. One process writes an entry; who wants the same one meanwhile waits
for it. The lock is the system's, so it goes with a killed process, and what that left is swept by the next that writes.
When an entry doesn't fit, those used longest ago go; a process that still reads one keeps its pages.

Not here: what is in an entry (training/feature_cache.py, data/cache.py).
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

from filelock import FileLock, Timeout

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.files import sync, write_json

CACHE_VARIABLE = "VIT_FINETUNE_CACHE"
_META = "meta.json"
_TEMPORARY = ".writing"


def default_cache_dir(kind: str) -> Path:
    """Return where entries are kept: $VIT_FINETUNE_CACHE, else vit_finetune/ in the user's cache folder, then `kind`.

    Args:
        kind: name of the folder.
    """
    told = os.environ.get(CACHE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(told).expanduser() if told else base / "vit_finetune") / kind


def cache_key(facts: Mapping[str, Any]) -> str:
    """Return the name of the entry that holds for exactly these facts.

    Args:
        facts: everything that its numbers depend on, as JSON values.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class EntryCache:
    """A folder of entries.

    Attributes:
        root: the folder; made when first written to.
        limit: the most bytes that all entries may take together.
    """

    root: Path
    limit: int

    def entry(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the folder of an entry and what `publish` was told, and note that it was used; None if there is none.

        Args:
            key: of `cache_key`.
        """
        folder = self.root / key
        try:
            meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
            os.utime(folder)
        except (OSError, ValueError):  # not there, or evicted while we looked
            return None
        return folder, meta

    def free_bytes(self) -> int:
        """Return how much the disk has for entries, those that are there counted in, since they may go."""
        existing = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        return shutil.disk_usage(existing).free + sum(size for _, _, size in self._entries())

    def check_space(self, sizes: Sequence[int], *, what: str, section: str, remedy: str) -> None:
        """Refuse entries that the limit, or the disk, has no room for.

        Args:
            sizes: bytes of each entry that one run needs together.
            what: is to be kept, such as "the features".
            section: of the recipe that has the keys cache_limit_gb and cache_dir.
            remedy: how to need less.

        Raises:
            RequestError: they don't fit, with what is needed and what there is.
        """
        need = sum(sizes)
        if need > self.limit:
            limit = gigabytes(self.limit)
            raise RequestError(
                f"{what} take {gigabytes(need)}, {section}.cache_limit_gb is {limit}; raise it, or {remedy}"
            )
        free = self.free_bytes()
        if need > free:
            raise RequestError(
                f"{what} take {gigabytes(need)}, the disk of {self.root} has {gigabytes(free)}; set "
                f"{section}.cache_dir to a larger one, or {remedy}"
            )

    @contextmanager
    def writing(self, key: str) -> Iterator[None]:
        """Hold the right to write an entry; waits while another process has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{key}.lock"):
            yield

    def begin(self, key: str, num_bytes: int, *, keep: Sequence[str] = ()) -> Path:
        """Make room for an entry and return the empty folder in which to write it; hold `writing`.

        Args:
            key: of `cache_key`.
            num_bytes: that it will take.
            keep: entries that must stay, since this run uses them.
        """
        self._sweep(key)
        self._make_room(num_bytes, keep={key, *keep})
        folder = self.root / f".{key}{_TEMPORARY}"
        folder.mkdir()
        return folder

    def publish(self, key: str, folder: Path, meta: Mapping[str, Any]) -> None:
        """Let a filled folder appear as the entry of its key.

        Args:
            key: of `cache_key`.
            folder: of `begin`.
            meta: what `entry` gives back, as JSON values.
        """
        for path in sorted(folder.iterdir()):
            sync(path)
        write_json(folder / _META, dict(meta))
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


def write_at(path: Path, offset: int, data: bytes | memoryview) -> None:
    """Write bytes into a file that is there; processes may write other places of it at the same time.

    Plain writes, since a full disk ends a process that writes through a memory map.

    Args:
        path: the file.
        offset: where in it, in bytes.
        data: what to write.

    Raises:
        WorkError: the disk is full.
    """
    try:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror}") from error


def gigabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.2f} GB"
