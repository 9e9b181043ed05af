"""Pictures of a run or of whatever a person names, labelled or not: the data side of a finished model at work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config, DataConfig
from vit_finetune.data import ImageSet, Splits, iter_images, load_folder, load_splits
from vit_finetune.data.labels import renumber

if TYPE_CHECKING:
    from typing import TypeAlias

    Picture: TypeAlias = str | Path | Image.Image | np.ndarray
    Data: TypeAlias = str | Path | Mapping[str, Any] | DataConfig | Splits | ImageSet


def labelled_pictures(data: Data, split: str | None, class_names: Sequence[str]) -> ImageSet:
    """Return labelled pictures whose labels index the model's `class_names`.

    Args:
        data: what `evaluate` takes.
        split: train, val or test; None takes test if there is one, else val.
        class_names: K names.

    Raises:
        RequestError: the pictures have a class that the model does not know, or no such split.
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, (str, Path)):
        path = Path(data)
        return load_folder(path if path.is_file() else _split_folder(path, split), class_names, split=split)
    splits = data if isinstance(data, Splits) else open_splits(data)
    found = dict(splits.named())
    name = split or ("test" if "test" in found else "val")
    if name not in found:
        raise RequestError(f"this data has no split {name!r}; it has {', '.join(found)}")
    unknown = [label for label in splits.class_names if label not in class_names]
    if unknown:
        raise RequestError(f"this data has classes that the model does not know: {', '.join(unknown)}")
    places = np.array([list(class_names).index(label) for label in splits.class_names], dtype=np.int64)
    return ImageSet(found[name].store, renumber(found[name].labels, places, len(class_names)))


def pictures_in(images: Picture | Iterable[Picture]) -> Iterator[Path | Image.Image]:
    """Yield one entry a picture, each when it is asked for: folders are listed, arrays become images.

    Args:
        images: one or many of: path of a file or folder, PIL image, uint8 array [H, W, 3] or [H, W].

    Raises:
        RequestError: something else was given, or a path leads to no picture.
    """
    single = isinstance(images, (str, Path, Image.Image, np.ndarray))
    for item in [images] if single else images:  # type: ignore[union-attr]
        if isinstance(item, (str, Path)):
            yield from iter_images([item])
        elif isinstance(item, Image.Image):
            yield item
        elif isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3):
            yield Image.fromarray(item)
        else:
            found = f"{item.dtype} array {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
            raise RequestError(f"cannot predict a {found}; give paths, PIL images or uint8 arrays [H, W, 3]")


def _split_folder(root: Path, split: str | None) -> Path:
    """Return the folder of class folders: below `split`, or where root/train/... shows splits, of test or val."""
    if split is not None:
        return root / split
    if (root / "train").is_dir():
        return next((root / name for name in ("test", "val") if (root / name).is_dir()), root)
    return root


def run_seed(run_or_model: str | Path) -> int:
    """Return the seed of a run; 0 for what is no run's folder."""
    return Config.load(run_or_model).run.seed if (Path(run_or_model) / "config.yaml").is_file() else 0


def run_splits(run_dir: str | Path) -> Splits:
    """Open the pictures of a run, split as the run split them.

    Raises:
        RequestError: this is no run's folder, or its data is not there any more.
    """
    if not (Path(run_dir) / "config.yaml").is_file():
        raise RequestError(f"{run_dir} is no run that knows its data; give a folder of class folders")
    config = Config.load(run_dir)
    return open_splits(config.data, seed=config.run.seed)


def open_splits(data: Mapping[str, Any] | DataConfig, *, seed: int = 0) -> Splits:
    """Open the pictures that a data section of a configuration describes.

    Args:
        data: the section.
        seed: decides which pictures are held out where the data has no val split.

    Raises:
        RequestError: the section or the data is not what it must be.
    """
    section = data if isinstance(data, DataConfig) else DataConfig.parse(data)
    return load_splits(
        root=section.root,
        source=section.source,
        train_split=section.train_split,
        val_split=section.val_split,
        test_split=section.test_split,
        val_fraction=section.val_fraction,
        test_fraction=section.test_fraction,
        split_by=section.split_by,
        group_pattern=section.group_pattern,
        image_column=section.image_column,
        label_column=section.label_column,
        split_column=section.split_column,
        group_column=section.group_column,
        time_column=section.time_column,
        label_separator=section.label_separator,
        streaming=section.streaming,
        seed=seed,
    )
