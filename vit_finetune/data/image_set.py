"""Pictures with labels: what a split is, wherever its pictures lie.

An `ImageSet` holds names and labels, not pixels, so it is cheap to send to a worker process.
Where the pictures lie is the business of an `ImageStore`: `FileStore` here, `TableStore` in hub.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.data.images import decode_picture

# An array is [H, W, C], made ready; a tensor is [C, H, W], of other channels than colours have.
Picture: TypeAlias = Image.Image | NDArray[np.uint8] | Tensor


class ImageStore(Protocol):
    """Numbered pictures with random access; picklable."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def name(self, index: int) -> str:
        """Return what people call the picture: its path, or its table and row."""
        ...

    def key(self, index: int) -> str:
        """Return the picture's name inside its data set, the same wherever the data set lies."""
        ...

    def read(self, index: int) -> bytes:
        """Return the bytes of the picture's file."""
        ...

    def take(self, indices: NDArray[np.int64]) -> ImageStore:
        """Return the store of these pictures alone, in this order."""
        ...


@runtime_checkable
class BlockStore(ImageStore, Protocol):
    """A store whose pictures come in blocks that are dear to fetch."""

    @property
    def version(self) -> str:
        """Return what changes when any picture does; it stands for bytes that nobody wants to fetch just for that."""
        ...

    def blocks(self) -> NDArray[np.int64]:
        """Return the block of each picture, [N]."""
        ...


@dataclass(frozen=True)
class FileStore:
    """Pictures in files.

    Attributes:
        root: the folder that the names start from.
        names: paths below `root` with "/", or absolute.
        digests: the SHA-256 that each file must have, hexadecimal; empty or None: nobody knows.
    """

    root: Path
    names: tuple[str, ...]
    digests: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path of the picture."""
        return str(self.root / self.names[index])

    def key(self, index: int) -> str:
        """Return the path below the root."""
        return self.names[index]

    def read(self, index: int) -> bytes:
        """Return the bytes of the file.

        Raises:
            RequestError: it cannot be read, or is not the file it must be.
        """
        path = self.root / self.names[index]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}; repair or remove it") from error
        known = self.digests is not None and self.digests[index]
        if known and hashlib.sha256(data).hexdigest() != known:
            raise RequestError(
                f"{path} is not the picture that the manifest lists (its SHA-256 is another); bring the picture back, "
                "or open the data where it lies instead of the manifest"
            )
        return data

    def take(self, indices: NDArray[np.int64]) -> FileStore:
        """Return the store of these pictures alone, in this order."""
        digests = None if self.digests is None else tuple(self.digests[index] for index in indices)
        return FileStore(self.root, tuple(self.names[index] for index in indices), digests)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures and the class index of each, or the classes that each has.

    Attributes:
        store: where the pictures lie.
        labels: [N] int64, index into the class names, -1 where the class is not known; or, multi-label, [N, K] uint8,
            1 where the picture has the class, else 0.
        groups: what each picture belongs to (a person, a video), where the data tells: `k_folds` keeps it together.
        weights: [N] float64, what each picture weighs in the training loss, finite, at least 0 and not all 0; None: all
            alike. Only training reads them.
    """

    store: ImageStore
    labels: NDArray[np.int64] | NDArray[np.uint8]
    groups: tuple[str, ...] | None = field(default=None, repr=False, kw_only=True)
    weights: NDArray[np.float64] | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a wrong number of labels, and weights that are none.

        Raises:
            ValueError: there is not exactly one label, or row of zeros and ones, for each picture; or weights are not
                one for each, finite, at least 0 and not all 0.
        """
        if self.labels.ndim not in (1, 2) or len(self.labels) != len(self.store):
            raise ValueError(f"labels have the shape {self.labels.shape} for {len(self.store)} pictures")
        if self.labels.ndim == 2 and not np.isin(self.labels, (0, 1)).all():
            raise ValueError("labels [N, K] say for each picture and class 1 or 0; found other values")
        if self.weights is not None:
            if self.weights.shape != (len(self.store),):
                raise ValueError(f"weights have the shape {self.weights.shape} for {len(self.store)} pictures")
            if not (np.isfinite(self.weights).all() and (self.weights >= 0).all() and self.weights.any()):
                raise ValueError("weights are finite, at least 0 and not all 0; found others")

    @property
    def is_multilabel(self) -> bool:
        """Tell whether each picture has any number of classes, not just one."""
        return self.labels.ndim == 2

    def class_counts(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many pictures have each class, [num_classes]."""
        if self.labels.ndim == 2:
            return np.asarray(self.labels.sum(axis=0, dtype=np.int64))
        return np.bincount(self.labels, minlength=num_classes)

    def class_weights(self, num_classes: int) -> NDArray[np.float64]:
        """Return what the pictures of each class weigh together, [num_classes]: their number where all weigh alike."""
        if self.weights is None:
            return self.class_counts(num_classes).astype(np.float64)
        if self.labels.ndim == 2:
            return np.asarray(self.weights @ self.labels)
        return np.asarray(np.bincount(self.labels, self.weights, minlength=num_classes), dtype=np.float64)

    @property
    def total_weight(self) -> float:
        """What all pictures weigh together: their number where all weigh alike."""
        return float(len(self)) if self.weights is None else float(self.weights.sum())

    def take(self, indices: NDArray[np.int64]) -> ImageSet:
        """Return the set of these pictures alone, in this order, with all that is known of them."""
        return ImageSet(
            self.store.take(indices),
            self.labels[indices],
            groups=None if self.groups is None else tuple(self.groups[index] for index in indices),
            weights=None if self.weights is None else self.weights[indices],
        )

    def single_labels(self, what: str) -> NDArray[np.int64]:
        """Return the class of each picture [N], for what needs exactly one.

        Args:
            what: named in the error.

        Raises:
            RequestError: pictures have any number of classes.
        """
        if self.is_multilabel:
            raise RequestError(f"{what} needs one class per picture, and these pictures have lists of classes")
        return self.labels.astype(np.int64, copy=False)

    @classmethod
    def from_paths(cls, paths: Iterable[str | Path]) -> ImageSet:
        """Return a set of picture files whose classes are not known (labels -1)."""
        names = tuple(str(path) for path in paths)
        return cls(FileStore(Path(), names), np.full(len(names), -1, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.store)

    def name(self, index: int) -> str:
        """Return what people call the picture: its path, or its table and row."""
        return self.store.name(index)

    def load(self, index: int) -> Image.Image | Tensor:
        """Read and decode one picture to RGB, or to [C, H, W] uint8 where it has other channels.

        Raises:
            RequestError: the picture cannot be read; the message names it.
        """
        return decode_picture(self.store.read(index), name=self.name(index))

    def picture(self, index: int) -> Picture:
        """Return what a transform is given: what `load` gives, or, in the sets of prepared.py, what was made of it.

        Raises:
            RequestError: the picture cannot be read; the message names it.
        """
        return self.load(index)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set, split, with one class map.

    Attributes:
        train: what is trained on.
        val: what the best checkpoint is chosen by, if anything.
        test: what is scored once, at the end, if anything.
        class_names: the classes in the order of their index, over all splits.
        notes: for people: what was left out, or decided because nobody said.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    def named(self) -> list[tuple[str, ImageSet]]:
        """Return the splits that exist as (train, val or test; pictures)."""
        splits = (("train", self.train), ("val", self.val), ("test", self.test))
        return [(name, pictures) for name, pictures in splits if pictures is not None]
