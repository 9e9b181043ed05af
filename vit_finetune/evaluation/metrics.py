"""Exact classification figures from sums and counts.

Every picture is counted once, over any number of processes and any data set size: each process adds up
integers (and the loss in float64) over its own share, one reduction adds the shares, and the number of
pictures seen is compared with the number there are. Nothing is padded and nothing is averaged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.additions import ADDED_METRICS, Metric, add
from vit_finetune.evaluation.multilabel import MULTILABEL_METRICS, f1, score_multilabel
from vit_finetune.evaluation.outputs import EvalResult, LabelledBatch, check_count, gathered, outputs

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS = ("accuracy", "macro_accuracy", "macro_f1", "top5", "loss")


def register_metric(name: str, measure: Metric) -> None:
    """Add a figure to every evaluation of one class a picture, and a value of `evaluation.metric`, for this process.

    Args:
        name: a Python name that no figure of the package has.
        measure: from labels [n] and probabilities [n, K] of a whole split, in its order, to a figure of which more is
            better. Every process calls it.

    Raises:
        RequestError: the name is none, or taken.
    """
    add(ADDED_METRICS, name, measure, kind="metric", own=(*METRICS, *MULTILABEL_METRICS))


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
    multilabel: bool = False,
    thresholds: Sequence[float] | None = None,
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
        multilabel: pictures have any number of classes; predictions are then always kept.
        thresholds: [K], of several classes a picture: one is predicted from this probability on; None takes 0.5.

    Returns:
        The same figures on every process.

    Raises:
        WorkError: a picture was missed or counted twice.
    """
    place = accelerator.device if accelerator is not None else device or torch.device("cpu")
    found = outputs(model, batches, accelerator=accelerator, place=place)
    if multilabel:
        return score_multilabel(
            found, class_names=class_names, num_expected=num_expected, accelerator=accelerator, thresholds=thresholds
        )
    num_classes = len(class_names)
    counts = torch.zeros(4, num_classes, dtype=torch.int64)  # pictures, first guesses right, in the first five, guesses
    loss_sum = torch.zeros(1, dtype=torch.float64)
    kept: list[tuple[np.ndarray, ...]] = []
    for batch, logits in found:
        labels = batch.labels.to(place)
        rank = ranks(logits, labels).cpu()
        for row, hits in enumerate((rank >= 0, rank == 0, rank < 5)):
            counts[row] += torch.bincount(batch.labels[hits], minlength=num_classes)
        guesses = torch.from_numpy(logits.cpu().numpy().argmax(axis=1))  # the first of equals, as `ranks` counts
        counts[3] += torch.bincount(guesses, minlength=num_classes)
        loss_sum += functional.cross_entropy(logits, labels, reduction="none").cpu().double().sum()
        if keep_predictions or ADDED_METRICS:
            kept.append((batch.indices.numpy(), batch.labels.numpy(), logits.softmax(dim=1).cpu().numpy()))
    if accelerator is not None and accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(place), reduction="sum").cpu()
        loss_sum = accelerator.reduce(loss_sum.to(place), reduction="sum").cpu()
    check_count(int(counts[0].sum()), num_expected)
    predictions = gathered(kept, accelerator) if keep_predictions or ADDED_METRICS else None
    result = _result(counts.numpy(), float(loss_sum), class_names, predictions if keep_predictions else None)
    if predictions is not None:
        _, true, probabilities = predictions
        result.metrics.update({name: float(measure(true, probabilities)) for name, measure in ADDED_METRICS.items()})
    return result


def _result(
    counts: np.ndarray, loss_sum: float, class_names: Sequence[str], predictions: tuple[np.ndarray, ...] | None
) -> EvalResult:
    """Divide once, at the end."""
    seen, right, in_five, guessed = counts
    total = max(1, int(seen.sum()))
    occurs, known = seen > 0, seen + guessed > 0
    figures = [f1(int(right[row]), int(seen[row]), int(guessed[row])) for row in np.flatnonzero(known)]
    metrics = {
        "loss": loss_sum / total,
        "accuracy": int(right.sum()) / total,
        "macro_accuracy": float((right[occurs] / seen[occurs]).mean()) if occurs.any() else 0.0,
        "macro_f1": float(np.mean(figures)) if figures else 0.0,
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
    if predictions is None:
        empty = np.zeros(0, dtype=np.int64)
        predictions = empty, empty, np.zeros((0, len(class_names)), dtype=np.float32)
    indices, labels, probabilities = predictions
    return EvalResult(metrics, int(seen.sum()), per_class, indices, labels, probabilities)
