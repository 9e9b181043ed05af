"""Mixup and CutMix of neighbours: the samples 2i and 2i + 1 of a global batch become mixtures of each other.

What a pair draws is a function of (seed, step, i), so neither the micro-batches nor the number of processes changes a
mixture. torchvision's and timm's transforms mix inside the batch that one process happens to hold.

Sources: Mixup, Zhang et al. 2017 (arXiv 1710.09412); CutMix, Yun et al. 2019 (1905.04899), whose box is cut as in its
published code; options and their meaning as timm's `Mixup` in its mode `pair`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vit_finetune.common.seeding import derive_seed


class Box(NamedTuple):
    """Rows top to bottom and columns left to right of a picture, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


class Draw(NamedTuple):
    """What a pair draws: the share of itself that each picture keeps, and the box that is swapped, if any."""

    share: float
    box: Box | None = None


@dataclass(frozen=True, kw_only=True)
class PairMixing:
    """How neighbours are mixed; the names are timm's.

    Attributes:
        seed: of the run.
        mixup_alpha: of the Beta distribution that Mixup draws its share from; 0 is off.
        cutmix_alpha: the same for CutMix.
        mixup_prob: of a pair being mixed at all.
        mixup_switch_prob: of CutMix, where both are on.
        off_step: steps done from which on nothing is mixed; None mixes to the end.
    """

    seed: int
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    off_step: int | None = None

    def acts_at(self, step: int) -> bool:
        """Say whether the update that comes after `step` done steps mixes."""
        return self.off_step is None or step < self.off_step

    def draw(self, step: int, pair: int, height: int, width: int) -> Draw:
        """Return what a pair of a step draws.

        Args:
            step: steps done.
            pair: its place among the pairs of the global batch.
            height: of the pictures, in pixels.
            width: of the pictures, in pixels.
        """
        rng = random.Random(derive_seed(self.seed, "mix", step, pair))  # noqa: S311 - no secret
        if rng.random() >= self.mixup_prob:
            return Draw(1.0)
        switches = rng.random() < self.mixup_switch_prob  # drawn always, so that an alpha changes nothing else
        if not self.cutmix_alpha or (self.mixup_alpha and not switches):
            return Draw(rng.betavariate(self.mixup_alpha, self.mixup_alpha))
        box = _box(rng, rng.betavariate(self.cutmix_alpha, self.cutmix_alpha), height, width)
        area = (box.bottom - box.top) * (box.right - box.left)
        return Draw(1 - area / (height * width), box)

    def shares(self, step: int, positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return how much of itself each picture of a micro-batch keeps.

        Args:
            step: steps done.
            positions: [b] places in the global batch; whole pairs, in order.
            height: of the pictures, in pixels.
            width: of the pictures, in pixels.

        Returns:
            Over all pixels [b], which is also the share of its label; and by pixel [b, 1, height, width]. float32.
        """
        places = positions.tolist()
        if len(places) % 2 or any(place % 2 for place in places[::2]) or places != sorted(places):
            raise ValueError(f"micro-batches that are mixed hold whole pairs; this one holds the places {places}")
        of_picture = torch.ones(len(places))
        of_pixel = torch.ones(len(places), 1, height, width)
        for row in range(0, len(places), 2):
            share, box = self.draw(step, places[row] // 2, height, width)
            of_picture[row : row + 2] = share
            if box is None:
                of_pixel[row : row + 2] = share
            else:
                of_pixel[row : row + 2, :, box.top : box.bottom, box.left : box.right] = 0
        return of_picture, of_pixel


def mixed(values: Tensor, share: Tensor) -> Tensor:
    """Return each row mixed with its neighbour.

    Args:
        values: [b, ...] pictures or soft labels; rows 2i and 2i + 1 are neighbours.
        share: what a row keeps of itself, to be broadcast over `values`.
    """
    neighbours = values.reshape(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)
    share = share.to(values)
    return values * share + neighbours * (1 - share)


def _box(rng: random.Random, share: float, height: int, width: int) -> Box:
    """Return a box of about 1 - share of the picture, around a random centre, cut off at the edges."""
    ratio = math.sqrt(1 - share)
    half_height, half_width = int(height * ratio) // 2, int(width * ratio) // 2
    row, column = rng.randrange(height), rng.randrange(width)
    return Box(
        max(row - half_height, 0),
        min(row + half_height, height),
        max(column - half_width, 0),
        min(column + half_width, width),
    )
