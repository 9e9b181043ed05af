"""The cache of decoded pictures: uint8 pixels in memory-mapped files, kept as common/entries.py says.

An entry holds what `prepared.py` makes of the pictures of a split, so a run reads from it the pixels that it would
have made. What a picture without pixels is (one that cannot be read) is found again from its file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vit_finetune.common.entries import EntryCache
from vit_finetune.common.errors import RequestError, VitFinetuneError, WorkError
from vit_finetune.data.bad_images import is_bad_image
from vit_finetune.data.image_set import Picture
from vit_finetune.data.prepared import PreparedImages
from vit_finetune.data.workers import run_workers

FORMAT = 1  # raised when the same facts would give other pixels, or the same pixels in other files
_INDEX, _PIXELS, _ROWS = "index.npy", "pixels-{}.bin", "rows-{}.npy"
_NO_PIXELS = -1
_NUM_THREADS = 8


@dataclass(frozen=True, eq=False)
class CachedImages(PreparedImages):
    """Pictures whose pixels lie in an entry.

    Attributes:
        folder: of the entry.
    """

    folder: Path

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs; it maps the files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "_pixels")}

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        """[N, 5]: file, offset in it, height, width, channels."""
        index: NDArray[np.int64] = np.load(self.folder / _INDEX)
        return index

    @cached_property
    def _pixels(self) -> list[NDArray[np.uint8]]:
        """The files; copied on write, so that torch may take them for writable."""
        count = int(self._index[:, 0].max(initial=-1)) + 1
        paths = [self.folder / _PIXELS.format(part) for part in range(count)]
        return [np.memmap(path, mode="c") if path.stat().st_size else np.zeros(0, np.uint8) for path in paths]

    def open(self) -> CachedImages:
        """Map the files now, so that they stay readable should another run need their room.

        Raises:
            OSError: the entry is gone.
        """
        _ = self._pixels
        return self

    def picture(self, index: int) -> Picture:
        """Return the kept pixels [H, W, C].

        Raises:
            RequestError: the picture cannot be read, as without a cache.
        """
        part, offset, *shape = self._index[index].tolist()
        if part == _NO_PIXELS:
            return super().picture(index)
        pixels = self._pixels[part][offset : offset + int(np.prod(shape))]
        return np.asarray(pixels).reshape(shape)


class PictureCache(EntryCache):
    """A folder of entries of decoded pictures."""

    def find(self, key: str, images: PreparedImages) -> CachedImages | None:
        """Return an image set that reads its pictures from an entry; None if there is no such entry.

        Args:
            key: of `cache_key`.
            images: what the entry was made from.
        """
        found = self.entry(key)
        if found is None:
            return None
        try:
            labels, groups, weights = images.labels, images.groups, images.weights
            kept = CachedImages(images.store, labels, images.prepare, found[0], groups=groups, weights=weights)
            return kept.open()
        except (OSError, ValueError):  # evicted while we looked
            return None

    def finish(self, key: str, folder: Path, count: int, facts: Mapping[str, Any]) -> None:
        """Join what the processes wrote and let it appear as the entry of its key.

        Args:
            key: of `cache_key`.
            folder: of `begin`.
            count: pictures of the split.
            facts: what the key was made of, for people.

        Raises:
            WorkError: a picture is missing.
        """
        index = np.zeros((count, 5), dtype=np.int64)
        seen = np.zeros(count, dtype=np.int64)
        for path in sorted(folder.glob(_ROWS.format("*"))):
            rows = np.load(path)
            index[rows[:, 0]] = rows[:, 1:]
            seen += np.bincount(rows[:, 0], minlength=count)
            path.unlink()
        if not (seen == 1).all():
            raise WorkError(f"the processes wrote {int(seen.sum())} of {count} pictures to {folder}; do they share it?")
        np.save(folder / _INDEX, index)
        self.publish(key, folder, {"facts": dict(facts)})


def expected_bytes(images: PreparedImages) -> int:
    """Return how many bytes the pictures of a split will take, from the headers of their files.

    Args:
        images: every file is read.
    """

    def one(index: int) -> int:
        try:
            return images.prepare.num_bytes(images, index)
        except RequestError:  # no pixels
            return 0

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return sum(pool.map(one, range(len(images)))) + len(images) * 5 * 8


def write_part(
    folder: Path, part: int, images: PreparedImages, indices: Sequence[int], *, num_workers: int, skip_bad: bool
) -> None:
    """Write the pixels of some pictures into an entry that is being filled.

    Args:
        folder: of `EntryCache.begin`.
        part: number of this process; each writes files of its own.
        images: the split.
        indices: which pictures.
        num_workers: processes that decode; 0 decodes here.
        skip_bad: note a picture that cannot be read instead of raising.

    Raises:
        RequestError: a picture cannot be read.
        WorkError: the disk is full.
    """
    rows, offset = [], 0
    path = folder / _PIXELS.format(part)
    try:
        with path.open("wb") as file:
            for index, pixels in run_workers(_Maker(images, skip_bad=skip_bad), indices, num_workers):
                if pixels is None:
                    rows.append((index, _NO_PIXELS, 0, 0, 0, 0))
                    continue
                file.write(np.ascontiguousarray(pixels).data)
                rows.append((index, part, offset, *pixels.shape))
                offset += pixels.nbytes
        np.save(folder / _ROWS.format(part), np.array(rows, dtype=np.int64).reshape(-1, 6))
    except OSError as error:
        raise WorkError(f"cannot write the decoded pictures to {path}: {error.strerror or error}") from error


_Made = tuple[int, NDArray[np.uint8] | None]  # index, and pixels [H, W, C]; None for a picture that cannot be read


class _Maker(Dataset[_Made | VitFinetuneError]):
    """Makes pictures ready in a worker process."""

    def __init__(self, images: PreparedImages, *, skip_bad: bool) -> None:
        self.images = images
        self.skip_bad = skip_bad

    def __getitem__(self, index: int) -> _Made | VitFinetuneError:
        """Return a picture made ready, or the error."""
        try:
            return index, np.atleast_3d(np.asarray(self.images.picture(index)))
        except RequestError as error:
            return (index, None) if self.skip_bad and is_bad_image(error) else error
