"""The clock of the batches, what it advises, and batches that are normalised where they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from vit_finetune.assembly.waiting import BytesBatch, DataWait
from vit_finetune.config import DataConfig
from vit_finetune.data.bad_images import BadImage
from vit_finetune.data.batch import Batch
from vit_finetune.data.pixels import Normalise


def test_data_wait__counts_the_time_inside_the_loader() -> None:
    """Three steps that take 20 ms to come and 10 ms to use: about two thirds of the time was waiting."""
    wait = DataWait()

    def slow() -> Iterator[int]:
        for step in range(3):
            time.sleep(0.02)
            yield step

    for _ in wait.timed(slow()):
        time.sleep(0.01)
    assert wait.waited == pytest.approx(0.06, abs=0.03)
    assert 0.5 < wait.waited / wait.total < 0.85


def test_data_wait__advises_what_is_not_used_yet() -> None:
    """A long wait names the options that are off; a short one, or none at all, gives no advice."""
    slow, quick = DataWait(waited=3.1, total=10), DataWait(waited=0.1, total=10)
    (line,) = slow.lines(DataConfig(root="x"), num_workers=4)
    assert line.startswith("waited   31% of the training time was waiting for pictures (3.1 s): try data.cache=decoded")
    assert "data.resizer=torch" in line
    assert line.endswith("more data.num_workers than 4")
    used = DataConfig(root="x", cache="decoded", resizer="torch", working_size=256)
    (line,) = slow.lines(used, num_workers=0)
    assert "try more data.num_workers than 0" in line
    assert "try" not in quick.lines(DataConfig(root="x"), num_workers=4)[0]
    assert DataWait().lines(used, num_workers=0) == []


def test_bytes_batch__is_the_batch_with_its_images_normalised() -> None:
    """Parts and lengths are the batch's; the images come out as the workers would have made them."""
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    rows = torch.arange(4)
    batch = Batch(pixels, rows % 2, rows, rows + 7, rows, (BadImage(9, "gone"),))
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    late = BytesBatch(batch, normalise, torch.device("cpu"))
    assert len(late) == 4
    assert torch.equal(late.images, normalise(pixels))
    part = late.part(slice(1, 3))
    assert torch.equal(part.images, normalise(pixels)[1:3])
    for name in ("labels", "indices", "sample_seeds", "positions"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[1:3]), name
    assert late.bad == batch.bad
