"""A network's outputs for this process's share of a split, and the shares joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vit_finetune.common.errors import WorkError

if TYPE_CHECKING:
    from accelerate import Accelerator


class LabelledBatch(Protocol):
    """What is scored."""

    @property
    def images(self) -> Tensor:
        """Pixels as the network takes them [B, C, H, W]."""

    @property
    def labels(self) -> Tensor:
        """True classes, int64 [B]; of several classes a picture uint8 [B, K], 1 for a class it has."""

    @property
    def indices(self) -> Tensor:
        """Places in the data set, int64 [B]."""


@dataclass(frozen=True)
class EvalResult:
    """The figures of one split.

    Attributes:
        metrics: `loss` (plain cross-entropy), and as fractions `accuracy`, `macro_accuracy` (mean over the
            classes that occur), `macro_f1` and `top5` (left out with fewer than five classes); for several classes a
            picture see `multilabel.score_multilabel`.
        num_samples: pictures counted.
        per_class: a row a class: `class`, `num_samples`, `num_correct`, `accuracy` (None where none occurs), ...
        indices: places in the data set [n], ascending; empty unless predictions were kept.
        labels: the true class of each [n], -1 where unknown; or [n, K], 1 for a class it has.
        probabilities: softmax outputs [n, K]; of several classes a picture sigmoid outputs.
    """

    metrics: dict[str, float]
    num_samples: int
    per_class: list[dict[str, Any]]
    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


@torch.inference_mode()
def outputs(
    model: nn.Module, batches: Iterable[LabelledBatch], *, accelerator: Accelerator | None, place: torch.device
) -> Iterator[tuple[LabelledBatch, Tensor]]:
    """Yield each batch with its logits [B, K], in float32 at least; the model's mode is put back at the end.

    Args:
        model: gives logits for images [B, C, H, W].
        batches: this process's share; empty is fine.
        accelerator: sets the precision; None computes as the model is.
        place: where to compute.
    """
    was_training = model.training
    model.eval()
    for batch in batches:
        images = batch.images.to(place, non_blocking=True)
        if accelerator is None:
            logits = model(images)
        else:
            with accelerator.autocast():
                logits = model(images)
        yield batch, logits.to(torch.promote_types(logits.dtype, torch.float32))
    model.train(was_training)


def check_count(num_scored: int, num_expected: int | Callable[[], int]) -> None:
    """Refuse figures of more or fewer pictures than there are.

    Raises:
        WorkError: a picture was missed or counted twice.
    """
    if not isinstance(num_expected, int):
        num_expected = num_expected()
    if num_scored != num_expected:
        raise WorkError(f"scored {num_scored} pictures of {num_expected}; each must be counted once")


def gathered(kept: list[tuple[np.ndarray, ...]], accelerator: Accelerator | None) -> tuple[np.ndarray, ...] | None:
    """Return what all processes kept, joined in data set order; None where nobody kept anything.

    Args:
        kept: arrays with a row a picture; the first of each tuple are places in the data set.
        accelerator: of the processes; None for one.
    """
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        kept = gather_object(kept)
    if not kept:
        return None
    columns = [np.concatenate(parts) for parts in zip(*kept, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return tuple(column[order] for column in columns)
