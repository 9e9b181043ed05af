"""What the tests of readouts share: a table of made-up features whose classes differ a little in each of them."""

from __future__ import annotations

import numpy as np

from vit_finetune.training.features import FeatureTable

LAYERS = (0, 1, 2, 3)


def table_of(count: int = 60, *, width: int = 12, cells: int = 4, num_classes: int = 3, seed: int = 0) -> FeatureTable:
    """Return features of so many pictures, dealt out to the classes in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, width))

    def noisy(*shape: int) -> np.ndarray:
        signal = centres[labels].reshape(count, *(1 for _ in shape), width)
        return (signal + rng.normal(0, 1.5, (count, *shape, width))).astype(np.float32)

    arrays = {"embedding": noisy()} | {kind: noisy(len(LAYERS)) for kind in ("cls", "avg", "max", "min")}
    return FeatureTable((arrays | {"grid": noisy(len(LAYERS), cells)},), labels, LAYERS, num_classes)
