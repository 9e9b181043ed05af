"""How long a run waited for its pictures, and what would shorten it; and bytes that are normalised on the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vit_finetune.config import DataConfig
from vit_finetune.data.bad_images import BadImage
from vit_finetune.data.batch import Batch
from vit_finetune.data.pixels import Normalise

T = TypeVar("T")
_WORTH_ADVICE = 0.1


@dataclass
class DataWait:
    """The clock of a run's training batches.

    Attributes:
        waited: seconds in which the loop had nothing to do but wait for a step's pictures.
        total: seconds from the first request for a step to the last, evaluations and checkpoints between them included.
    """

    waited: float = 0.0
    total: float = 0.0

    def timed(self, steps: Iterator[T]) -> Iterator[T]:
        """Yield the steps and keep the time."""
        started = asked = time.monotonic()
        for step in steps:
            answered = time.monotonic()
            self.waited += answered - asked
            yield step
            asked = time.monotonic()
            self.total += asked - started
            started = asked

    def lines(self, data: DataConfig, *, num_workers: int) -> list[str]:
        """Return the share of the time that went into waiting, with what would lower it.

        Args:
            data: what the recipe says now.
            num_workers: worker processes of each process.
        """
        if self.total <= 0:
            return []
        share = self.waited / self.total
        advice = []
        if data.cache == "off":
            advice.append("data.cache=decoded")
        if data.resizer == "pil":
            advice.append("data.resizer=torch")
        if data.working_size is None:
            advice.append("data.working_size for large pictures")
        advice.append(f"more data.num_workers than {num_workers}")
        remedy = f": try {', '.join(advice)}" if share >= _WORTH_ADVICE else ""
        return [f"waited   {share:.0%} of the training time was waiting for pictures ({self.waited:.1f} s){remedy}"]


@dataclass(frozen=True, eq=False)
class BytesBatch:
    """A batch of bytes whose `images` come out normalised on a device: a quarter of the traffic, the same numbers.

    Attributes:
        batch: with uint8 pictures.
        normalise: on the device.
        device: of the network.
    """

    batch: Batch
    normalise: Normalise
    device: torch.device

    @property
    def images(self) -> Tensor:
        """[b, C, H, W] float32 on the device; made anew each time, so that only bytes wait there."""
        images: Tensor = self.normalise(self.batch.images.to(self.device, non_blocking=True))
        return images

    @property
    def labels(self) -> Tensor:
        """As `Batch.labels`."""
        return self.batch.labels

    @property
    def indices(self) -> Tensor:
        """As `Batch.indices`."""
        return self.batch.indices

    @property
    def sample_seeds(self) -> Tensor:
        """As `Batch.sample_seeds`."""
        return self.batch.sample_seeds

    @property
    def positions(self) -> Tensor:
        """As `Batch.positions`."""
        return self.batch.positions

    @property
    def weights(self) -> Tensor | None:
        """As `Batch.weights`."""
        return self.batch.weights

    @property
    def bad(self) -> tuple[BadImage, ...]:
        """As `Batch.bad`."""
        return self.batch.bad

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.batch)

    def part(self, rows: slice) -> BytesBatch:
        """Return some of the samples, as views."""
        return BytesBatch(self.batch.part(rows), self.normalise, self.device)
