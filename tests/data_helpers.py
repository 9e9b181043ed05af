"""Small pictures and folders for the tests of the data room."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vit_finetune.data.image_set import FileStore, ImageSet


def photo(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """Return a picture of smooth random colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_pictures(root: Path, counts: Mapping[str, int], *, seed: int = 0) -> Path:
    """Write `counts[folder]` pictures 0.png, 1.png, ... into each folder below root."""
    for number, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            photo(seed + 1000 * number + index).save(root / folder / f"{index}.png")
    return root


def picture_set(root: Path, count: int, *, num_classes: int = 3) -> ImageSet:
    """Write pictures and return them as a set with labels 0, 1, 2, 0, ..."""
    write_pictures(root, {"all": count})
    names = tuple(f"all/{index}.png" for index in range(count))
    return ImageSet(FileStore(root, names), np.arange(count, dtype=np.int64) % num_classes)
