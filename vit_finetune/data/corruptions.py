"""A few common corruptions at three strengths: how much of the accuracy survives a worse camera.

A corruption is applied where ImageNet-C applies it: to the resized and cropped picture of bytes, before it is
normalised. What is random in it is a function of (seed, corruption, severity, picture), so that the figures repeat on
any number of processes and workers. This is a check, not the benchmark: three of its fifteen corruptions.

Source: Hendrycks & Dietterich 2019 (arXiv 1903.12261); strengths as in its reference code (make_imagenet_c.py,
make_cifar_c.py), and for sizes between the two on the line between them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from vit_finetune.common.errors import RequestError
from vit_finetune.common.seeding import derive_seed

# Strengths at severities 1, 3 and 5 for pictures of 32 pixels (CIFAR-10-C) and of 224 (ImageNet-C). Blur: sigma in
# pixels; noise: sigma for pixels in [0, 1]; JPEG: quality.
STRENGTHS: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "blur": {1: (0.4, 1), 3: (0.7, 3), 5: (1, 6)},
    "noise": {1: (0.04, 0.08), 3: (0.08, 0.18), 5: (0.10, 0.38)},
    "jpeg": {1: (80, 25), 3: (58, 15), 5: (40, 7)},
}
_SMALL, _LARGE = 32, 224


class Corruption(torch.nn.Module):
    """A corruption at one strength: picture of bytes -> picture of bytes, drawing from torch's default generator.

    Args:
        name: blur, noise or jpeg.
        severity: 1, 3 or 5, in ImageNet-C's counting.

    Raises:
        RequestError: there is no such corruption or severity.
    """

    def __init__(self, name: str, severity: int) -> None:
        super().__init__()
        if severity not in STRENGTHS.get(name, {}):
            raise RequestError(
                f"there is no corruption {name!r} of severity {severity}; there are {', '.join(STRENGTHS)}, each of "
                f"{', '.join(map(str, STRENGTHS['blur']))}"
            )
        self.name = name
        self.severity = severity

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the corrupted picture, of the same size and mode."""
        strength = self.strength(min(image.size))
        if self.name == "blur":
            return image.filter(ImageFilter.GaussianBlur(strength))
        if self.name == "noise":
            pixels = np.asarray(image)
            noisy = pixels + 255 * strength * torch.randn(pixels.shape).numpy()
            return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=round(strength))
        return Image.open(file).convert(image.mode)

    def strength(self, side: int) -> float:
        """Return the strength for pictures whose shorter side has so many pixels, on the line between the two codes."""
        small, large = STRENGTHS[self.name][self.severity]
        share = (min(max(side, _SMALL), _LARGE) - _SMALL) / (_LARGE - _SMALL)
        return small + share * (large - small)

    def seed(self, seed: int) -> int:
        """Return what the corruption of all pictures is drawn from; with a picture's index, that of one."""
        return derive_seed(seed, "corruption", self.name, self.severity)


def over_corruptions(score: Callable[[Corruption], Mapping[str, float]]) -> dict[str, Any]:
    """Score under every corruption at every severity.

    Args:
        score: figures of a split whose pictures are corrupted so.

    Returns:
        Plain JSON values: `rows` of `corruption`, `severity` and the figures, and `mean`, each figure's mean over them.
    """
    rows: list[dict[str, Any]] = [
        {"corruption": name, "severity": severity, **score(Corruption(name, severity))}
        for name, strengths in STRENGTHS.items()
        for severity in strengths
    ]
    figures = [key for key in rows[0] if key not in ("corruption", "severity")]
    return {"mean": {key: sum(row[key] for row in rows) / len(rows) for key in figures}, "rows": rows}


def corruption_lines(table: Mapping[str, Any], metric: str) -> list[str]:
    """Return a table of `over_corruptions` for people: one figure, a line a corruption."""
    lines = []
    for name, strengths in STRENGTHS.items():
        found = [row[metric] for row in table["rows"] if row["corruption"] == name]
        told = "  ".join(f"{severity}: {value:.4f}" for severity, value in zip(strengths, found, strict=True))
        lines.append(f"{name:<6} {metric} at severity {told}")
    return [*lines, f"mean   {metric} {table['mean'][metric]:.4f}"]
