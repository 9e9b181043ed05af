"""Exact classification figures from sums and counts.

Every picture is counted once, over any number of processes and any data set size: each process adds up
integers (and the loss in float64) over its own share, one reduction adds the shares, and the number of
pictures seen is compared with the number there are. Nothing is padded and nothing is averaged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.errors import WorkError

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS = ("accuracy", "macro_accuracy", "top5", "loss")


class LabelledBatch(Protocol):
    """What is scored."""

    @property
    def images(self) -> Tensor:
        """Pixels as the network takes them [B, C, H, W]."""

    @property
    def labels(self) -> Tensor:
        """True classes, int64 [B]."""

    @property
    def indices(self) -> Tensor:
        """Places in the data set, int64 [B]."""


@dataclass(frozen=True)
class EvalResult:
    """The figures of one split.

    Attributes:
        metrics: `loss` (plain cross-entropy), and as fractions `accuracy`, `macro_accuracy` (mean over the
            classes that occur) and `top5` (left out with fewer than five classes).
        num_samples: pictures counted.
        per_class: a row a class: `class`, `num_samples`, `num_correct`, `accuracy` (None where none occurs).
        indices: places in the data set [n], ascending; empty unless predictions were kept.
        labels: the true class of each [n]; -1 where unknown.
        probabilities: softmax outputs [n, K].
    """

    metrics: dict[str, float]
    num_samples: int
    per_class: list[dict[str, Any]]
    indices: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Say whether `value` beats `best`; a tie does not, so the earlier one stays."""
    if best is None:
        return True
    return value < best if metric == "loss" else value > best


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Return for each row how many classes come before the true one.

    A class comes before when its logit is larger, or equal with a lower index: a constant output is right
    for class 0 only.

    Args:
        logits: [B, K].
        labels: [B], in [0, K).

    Returns:
        int64 [B], 0 for a correct first guess.
    """
    true = logits.gather(1, labels[:, None])
    not_lower = torch.arange(logits.shape[1], device=logits.device)[None] >= labels[:, None]
    # Counted from behind, so that a NaN, which compares with nothing, is never a correct guess.
    behind = (logits < true) | ((logits == true) & not_lower)
    return logits.shape[1] - behind.sum(dim=1)


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: Iterable[LabelledBatch],
    *,
    class_names: Sequence[str],
    num_expected: int | Callable[[], int],
    accelerator: Accelerator | None = None,
    device: torch.device | None = None,
    keep_predictions: bool = False,
) -> EvalResult:
    """Score a model on this process's share of a split and add up the shares.

    Args:
        model: gives logits [B, K] for images [B, C, H, W]; its mode is put back afterwards.
        batches: this process's share; empty is fine.
        class_names: K names, in the order of the logits.
        num_expected: pictures of the whole split; or what tells, once all were seen, how many of them can be read.
        accelerator: adds up over its processes and sets the precision; None for one process.
        device: where to compute without an accelerator.
        keep_predictions: gather every picture's probabilities, in data set order.

    Returns:
        The same figures on every process.

    Raises:
        WorkError: a picture was missed or counted twice.
    """
    place = accelerator.device if accelerator is not None else device or torch.device("cpu")
    num_classes = len(class_names)
    counts = torch.zeros(3, num_classes, dtype=torch.int64)  # pictures, first guesses right, in the first five
    loss_sum = torch.zeros(1, dtype=torch.float64)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    was_training = model.training
    model.eval()
    for batch in batches:
        labels = batch.labels.to(place)
        images = batch.images.to(place, non_blocking=True)
        if accelerator is None:
            logits = model(images)
        else:
            with accelerator.autocast():
                logits = model(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        rank = ranks(logits, labels).cpu()
        for row, hits in enumerate((rank >= 0, rank == 0, rank < 5)):
            counts[row] += torch.bincount(batch.labels[hits], minlength=num_classes)
        loss_sum += functional.cross_entropy(logits, labels, reduction="none").cpu().double().sum()
        if keep_predictions:
            kept.append((batch.indices.numpy(), batch.labels.numpy(), logits.softmax(dim=1).cpu().numpy()))
    model.train(was_training)
    if accelerator is not None and accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(place), reduction="sum").cpu()
        loss_sum = accelerator.reduce(loss_sum.to(place), reduction="sum").cpu()
    expected = num_expected if isinstance(num_expected, int) else num_expected()
    if int(counts[0].sum()) != expected:
        raise WorkError(f"scored {int(counts[0].sum())} pictures of {expected}; each must be counted once")
    return _result(counts.numpy(), float(loss_sum), class_names, _gathered(kept, num_classes, accelerator))


def _gathered(
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]], num_classes: int, accelerator: Accelerator | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join the kept predictions of all processes, in data set order."""
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        kept = gather_object(kept)
    if not kept:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros((0, num_classes), dtype=np.float32)
    indices, labels, probabilities = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.argsort(indices, kind="stable")
    return indices[order], labels[order], probabilities[order]


def _result(
    counts: np.ndarray,
    loss_sum: float,
    class_names: Sequence[str],
    predictions: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> EvalResult:
    """Divide once, at the end."""
    seen, right, in_five = counts
    total = max(1, int(seen.sum()))
    occurs = seen > 0
    metrics = {
        "loss": loss_sum / total,
        "accuracy": int(right.sum()) / total,
        "macro_accuracy": float((right[occurs] / seen[occurs]).mean()) if occurs.any() else 0.0,
    }
    if len(class_names) >= 5:
        metrics["top5"] = int(in_five.sum()) / total
    per_class = [
        {
            "class": name,
            "num_samples": int(seen[row]),
            "num_correct": int(right[row]),
            "accuracy": int(right[row]) / int(seen[row]) if occurs[row] else None,
        }
        for row, name in enumerate(class_names)
    ]
    return EvalResult(metrics, int(seen.sum()), per_class, *predictions)
