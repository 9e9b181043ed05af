"""The few pictures that exactness.py trains on, made once, and a data set of them as anybody writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

BATCH, EPOCHS, SAVE_EVERY, IMG_SIZE = 8, 2, 3, 32
NUM_TRAIN, NUM_VAL = 64, 65  # neither 8 x 3 pictures nor 3 processes divide the held-out ones
NUM_PROCESSES = 3
COLOURS = {"blue": (90, 90, 150), "green": (90, 150, 90), "red": (150, 90, 90)}


def make_pictures(root: Path) -> None:
    """Write root/{train,val}/COLOUR/N.png: noise around three colours, the same at every call."""
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for index in range(count):
            name = names[index % len(names)]
            pixels = np.array(COLOURS[name]) + rng.normal(0, 90, (1, 1, 3)) + rng.normal(0, 40, (40, 48, 3))
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{index:02d}.png")


class Photos(Dataset[dict[str, Any]]):
    """The pictures of a split, augmented at random for training; each item tells its index."""

    def __init__(self, root: Path, split: str) -> None:
        self.files = sorted((root / split).rglob("*.png"))
        first = (
            [v2.RandomResizedCrop(IMG_SIZE), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)]
            if split == "train"
            else [v2.Resize((IMG_SIZE, IMG_SIZE))]
        )
        self.transform = v2.Compose([*first, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a picture, its class and its index."""
        file = self.files[index]
        pixels = self.transform(Image.open(file).convert("RGB"))
        return {"pixel_values": pixels, "labels": list(COLOURS).index(file.parent.name), "index": index}
