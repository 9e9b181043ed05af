"""The feature cache: folders of arrays, kept as common/entries.py says.

Not here: what is in an entry (features.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_finetune.common.entries import EntryCache, cache_key, default_cache_dir, write_at
from vit_finetune.common.errors import WorkError

__all__ = ["FeatureCache", "Shapes", "cache_key", "default_cache_dir", "size_of", "write_rows"]

Shapes = Mapping[str, tuple[int, ...]]


def size_of(shapes: Shapes, dtype: np.dtype[Any]) -> int:
    """Return how many bytes the arrays of an entry take."""
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) * dtype.itemsize


class FeatureCache(EntryCache):
    """A folder of entries of arrays."""

    def find(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of an entry, memory-mapped and read-only, and note that it was used; None if there is none.

        Args:
            key: of `cache_key`.
        """
        found = self.entry(key)
        if found is None:
            return None
        folder, meta = found
        try:
            return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
        except (OSError, ValueError, KeyError):  # evicted while we looked
            return None

    def check_room(self, sizes: Sequence[int]) -> None:
        """Refuse features that the limit, or the disk, has no room for.

        Args:
            sizes: bytes of each entry that one run needs together.

        Raises:
            RequestError: they don't fit, with what is needed and what there is.
        """
        remedy = "choose fewer readout.layers, a smaller readout.grid or readout.dtype float16"
        self.check_space(sizes, what="the features", section="readout", remedy=remedy)

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
        folder = self.begin(key, size_of(shapes, dtype), keep=keep)
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
        self.publish(key, folder, {"arrays": names, "facts": dict(facts)})


def write_rows(folder: Path, name: str, start: int, rows: np.ndarray) -> None:
    """Write rows of an array of an entry; processes may write other rows at the same time.

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
        offset = np.load(path, mmap_mode="r").offset
    except OSError as error:
        raise WorkError(f"cannot write the features to {path}: {error.strerror}") from error
    write_at(path, offset + start * rows[:1].nbytes, np.ascontiguousarray(rows).tobytes())
