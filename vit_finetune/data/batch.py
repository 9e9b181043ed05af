"""What the loader hands over: samples that go through the model together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vit_finetune.data.bad_images import BadImage

TENSORS = ("images", "labels", "indices", "sample_seeds", "positions")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that go through the model together.

    Attributes:
        images: [b, C, H, W] float32, normalised; uint8 where that is left to the device (`build_train_transform`).
        labels: [b] int64, class index, -1 where it is not known; multi-label: [b, K] uint8, 1 for a class it has.
        indices: [b] int64, which samples of the image set.
        sample_seeds: [b] int64, what each sample's noise inside the model is drawn from.
        positions: [b] int64, the place of each sample in the global batch of the step.
        bad: samples that belong here and were left out, since they cannot be read.
        weights: [b] float64, what each sample weighs in the loss, with a mean of 1 over the global batch as it was
            dealt; None: all alike. They stay on the CPU.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    sample_seeds: Tensor
    positions: Tensor
    bad: tuple[BadImage, ...] = field(default=())
    weights: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def part(self, rows: slice) -> Batch:
        """Return some of the samples, as views; what was left out stays with the whole."""
        weights = None if self.weights is None else self.weights[rows]
        return Batch(**{name: getattr(self, name)[rows] for name in TENSORS}, weights=weights)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device.

        Args:
            device: where to.
            non_blocking: do not wait for the copy; only helps from pinned memory.
        """
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in TENSORS})

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `DataLoader` calls this."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in TENSORS})
