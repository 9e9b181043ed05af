"""What turns requests into batches, in worker processes or in this one.

The unit of work is a micro-batch: a worker is sent the indices of one and sends back its tensors. It holds no state:
how a sample is augmented depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import get_size

from vit_finetune.common.errors import RequestError, VitFinetuneError
from vit_finetune.common.seeding import derive_seed
from vit_finetune.data.bad_images import BadImage, is_bad_image
from vit_finetune.data.batch import Batch
from vit_finetune.data.image_set import ImageSet, Picture
from vit_finetune.data.transforms import Transform, apply_seeded

T = TypeVar("T")
_ASK_TO_STOP = ("SIGINT", "SIGTERM", "SIGUSR1")  # those that the system knows


class Request(NamedTuple):
    """What a worker is asked for: one micro-batch."""

    step: int
    epochs: NDArray[np.int64]
    indices: NDArray[np.int64]
    start: int  # place of the first in the global batch
    is_last: bool  # of the step, on this rank
    weights: NDArray[np.float64] | None = None  # of each in the loss, as `Batch.weights`


class Result(NamedTuple):
    """What a worker answers."""

    batch: Batch
    is_last: bool


class Worker(Dataset[Result | VitFinetuneError]):
    """Turns requests into batches; lives in every worker process.

    Args:
        images: where the pictures come from.
        transform: what is done to each.
        seed: of the run.
        skip_bad: leave out what cannot be read, instead of answering with the error.
        in_pairs: leave out its neighbour, too.
    """

    def __init__(
        self, images: ImageSet, transform: Transform, seed: int, *, skip_bad: bool = False, in_pairs: bool = False
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.skip_bad = skip_bad
        self.in_pairs = in_pairs

    def __getitem__(self, request: Request) -> Result | VitFinetuneError:
        """Return the batch; an error for the user is returned too, because torch rewrites what is raised."""
        try:
            pictures, bad = self._pictures(request)
        except VitFinetuneError as error:
            return error
        kept = np.array([row for row, picture in enumerate(pictures) if picture is not None], dtype=np.int64)
        if self.in_pairs:  # whose neighbour is bad has nobody to be mixed with, and sits out this step
            kept = kept[np.isin(kept ^ 1, kept)]
        indices = request.indices[kept]
        noise = [derive_seed(self.seed, "noise", request.step, index) for index in indices.tolist()]
        batch = Batch(
            images=self._stacked([picture for row in kept if (picture := pictures[row]) is not None]),
            labels=torch.from_numpy(self.images.labels[indices]),
            indices=torch.from_numpy(indices),
            sample_seeds=torch.tensor(noise, dtype=torch.int64),
            positions=torch.from_numpy(request.start + kept),
            bad=tuple(bad),
            weights=None if request.weights is None else torch.from_numpy(request.weights[kept]),
        )
        return Result(batch, request.is_last)

    def _pictures(self, request: Request) -> tuple[list[Tensor | None], list[BadImage]]:
        """Return every picture transformed, None for the bad ones, and what is wrong with those."""
        pictures: list[Tensor | None] = []
        bad = []
        for epoch, index in zip(request.epochs.tolist(), request.indices.tolist(), strict=True):
            try:
                image = self.images.picture(index)
            except RequestError as error:
                if not (self.skip_bad and is_bad_image(error)):
                    raise
                bad.append(BadImage(index, str(error)))
                pictures.append(None)
                continue
            pictures.append(self._transformed(image, epoch, index))
        return pictures, bad

    def _transformed(self, image: Picture, epoch: int, index: int) -> Tensor:
        """Return one view of a picture."""
        try:
            return apply_seeded(self.transform, image, derive_seed(self.seed, "augment", epoch, index))
        except RequestError as error:
            raise RequestError(f"{self.images.name(index)}: {error}") from error
        except Exception as error:
            height, width = image.shape[:2] if isinstance(image, np.ndarray) else get_size(image)
            error.add_note(f"while transforming {self.images.name(index)}, {width}x{height} pixels")
            raise

    def _stacked(self, pictures: list[Tensor]) -> Tensor:
        """Return pictures [b, C, H, W]; of none, too, in the shape of any other.

        Those whose channels lie side by side, as quickly resized bytes, are stacked as they lie: turning each would
        take as long as half its resize, and whoever normalises the batch turns it anyway.
        """
        if pictures and not pictures[0].is_contiguous():
            return torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)
        if pictures:
            return torch.stack(pictures)
        example = apply_seeded(self.transform, Image.new("RGB", (8, 8)), seed=0)
        return example.new_empty((0, *example.shape))


def run_workers(
    worker: Dataset[T | VitFinetuneError], requests: Iterable[Any], num_workers: int, *, pin_memory: bool = False
) -> Iterator[T]:
    """Send requests to workers and yield the answers in order.

    Closing the generator, or an error, ends the workers: the loop holds the only reference to the iterator that owns
    them.

    Args:
        worker: `worker[request]` answers, with an error instead of raising it, because torch rewrites what is raised; a
            copy of it lives in each process.
        requests: what is asked for.
        num_workers: how many processes; 0 answers here.
        pin_memory: hand over page-locked memory.

    Raises:
        VitFinetuneError: what a worker answered instead of a batch.
    """
    loader = DataLoader(
        worker,
        sampler=requests,
        batch_size=None,  # a request is answered as a whole
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # so that torch's default generator is not drawn from
    )
    for result in loader:
        if isinstance(result, VitFinetuneError):
            raise result
        yield result


def _leave_signals(_worker: int) -> None:
    """Leave what a terminal or a batch system sends to all processes to the one that trains: it still needs batches."""
    for number in (each for each in signal.Signals if each.name in _ASK_TO_STOP):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(result: Any) -> Any:
    """Return the answer as the worker made it."""
    return result
