"""Pictures that Python holds -> `Splits`: any data set with a length and `[i]` -> (picture, class).

A picture becomes bytes here, as a file's would be, so that everything behind (manifest, decoding, workers, resume)
treats it as a file. What it is not: a place for transforms; a run's own follow its recipe and seed.
"""

from __future__ import annotations

import io
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.data.class_map import share_class_map
from vit_finetune.data.image_set import FileStore, Splits
from vit_finetune.data.images import decode_image
from vit_finetune.data.labels import Label
from vit_finetune.data.parts import Part, Parts
from vit_finetune.data.splitting import SplitRule, split


class Samples(Protocol):
    """A list, or a data set as torch's map-style ones: item i is (picture, class)."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return (picture, class) as `splits_from` describes them."""
        ...


@dataclass(frozen=True, eq=False)
class SampleStore:
    """Pictures of a data set in memory.

    Attributes:
        samples: the data set.
        split: what its pictures are called by: split[index].
        chosen: [N] int64, which of its items these are.
    """

    samples: Samples
    split: str
    chosen: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.chosen)

    def name(self, index: int) -> str:
        """Return split[index]."""
        return f"{self.split}[{self.chosen[index]}]"

    def key(self, index: int) -> str:
        """Return split[index]."""
        return self.name(index)

    def read(self, index: int) -> bytes:
        """Return the picture as the bytes of a file: its own, or its pixels as an uncompressed PPM.

        Raises:
            RequestError: it is no picture, or its file cannot be read.
        """
        picture = self.samples[int(self.chosen[index])][0]
        if isinstance(picture, bytes):
            return picture
        if isinstance(picture, str | Path):
            return FileStore(Path(), (str(picture),)).read(0)
        content = io.BytesIO()
        decode_image(_as_image(picture, self.name(index)), name=self.name(index)).save(content, "PPM")
        return content.getvalue()

    def take(self, indices: NDArray[np.int64]) -> SampleStore:
        """Return the store of these pictures alone, in this order."""
        return SampleStore(self.samples, self.split, self.chosen[indices])


def splits_from(
    train: Samples,
    val: Samples | None = None,
    test: Samples | None = None,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Return splits of pictures that Python holds, for `finetune(..., data=...)`.

    Every sample is asked for once here, for its class, and again when its picture is needed. With worker processes
    (`data.num_workers`) the data sets must be picklable.

    Args:
        train: what is trained on: a list, or a data set as torch's, of (picture, class) without transforms of its own;
            a picture is a PIL image, a uint8 array [H, W, 3] or [H, W], a path, or the bytes of a file; a class is a
            name or an index, or, where pictures have any number of classes, a list of these.
        val: what selects the best checkpoint; None holds a share of train out.
        test: what is scored once, at the end.
        class_names: names of the classes in the order of their index; None takes `train.classes` where there is such
            a list, else the names themselves, or the indices as names.
        val_fraction: the share of each class held out where there is no val, in [0, 1); 0 holds nothing out.
        seed: decides what is held out.

    Returns:
        The splits.

    Raises:
        RequestError: a sample is not (picture, class), a class is unknown, or there is a single one.
    """
    rule = SplitRule(val_fraction=val_fraction, seed=seed)
    if not len(train):
        raise RequestError("the training data set is empty")
    declared = class_names if class_names is not None else getattr(train, "classes", None)
    names = None if declared is None else tuple(map(str, declared))
    parts = Parts(
        _part("train", train, names),
        None if val is None else _part("val", val, names),
        None if test is None else _part("test", test, names),
        notes=(),
        class_names=names,
    )
    return share_class_map(split(parts, rule, with_val=True))


def _part(split: str, samples: Samples, class_names: tuple[str, ...] | None) -> Part:
    """Return the pictures of a split with the class name of each."""
    store = SampleStore(samples, split, np.arange(len(samples), dtype=np.int64))
    return Part(store, [_classes_of(samples[index], store.name(index), class_names) for index in range(len(store))])


def _classes_of(sample: Any, name: str, class_names: tuple[str, ...] | None) -> Label:
    """Return the class name of a sample, or its class names; the picture is looked at on the way."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise RequestError(f"{name} is a {type(sample).__name__}; a sample is (picture, class)")
    picture, label = sample
    if not isinstance(picture, str | Path | bytes):
        _as_image(picture, name)
    if not isinstance(label, tuple | list):
        return _class_of(label, name, class_names)
    found = tuple(_class_of(each, name, class_names) for each in label)
    if len(set(found)) != len(found):
        raise RequestError(f"{name} has a class twice: {label!r}; a list names the classes of a picture, each once")
    return found


def _class_of(label: Any, name: str, class_names: tuple[str, ...] | None) -> str:
    """Return the name of a class that is given by name or by index."""
    if not isinstance(label, str):
        try:
            index = operator.index(label)
        except TypeError:
            raise RequestError(f"{name} has the class {label!r}; give a name, an index, or a list of them") from None
        if class_names is None:
            return str(index)
        if not 0 <= index < len(class_names):
            last = len(class_names) - 1
            raise RequestError(f"{name} has the class {index}; the class names are for 0 to {last}")
        return class_names[index]
    if class_names is not None and label not in class_names:
        raise RequestError(f"{name} has the class {label!r}, which class_names lacks{did_you_mean(label, class_names)}")
    return label


def _as_image(picture: Any, name: str) -> Image.Image:
    """Return a picture in memory as PIL's."""
    if isinstance(picture, Image.Image):
        return picture
    if (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and (picture.ndim == 2 or picture.shape[2:] == (3,))
    ):
        return Image.fromarray(picture)
    found = f"{picture.dtype} array {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
    raise RequestError(
        f"the picture of {name} is a {found}; give PIL images, uint8 arrays [H, W, 3], paths or the bytes of files, "
        "and leave the data set's own transform out: the recipe says how pictures are cropped, varied and normalised"
    )
