"""What a run minimises: the loss of every picture, as a function of the logits and of what the recipe says.

A picture has one class (softmax cross-entropy) or any number of them (a sigmoid a class). Weights and priors are
counted from the training split and scaled so that their mean over it is 1: the loss stays comparable, and, because the
loop divides by the number of pictures, it is the same for any split of the batch. Weights of pictures come with the
batch, with a mean of 1 over the global batch, so that dividing by the number is dividing by the sum of the weights.

Sources: logit adjustment, Menon et al. 2020 (arXiv 2007.07314), equation 10 with tau = 1; class weights as
scikit-learn's `balanced`; weights of positives as torch's documentation of `BCEWithLogitsLoss` proposes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.training.mix import PairMixing, mixed

MULTICLASS, MULTILABEL = "multiclass", "multilabel"


class TrainBatch(Protocol):
    """A micro-batch of a step."""

    @property
    def images(self) -> Tensor:
        """Pixels as the network takes them [b, C, H, W]."""

    @property
    def labels(self) -> Tensor:
        """True classes, int64 [b]; of several classes a picture uint8 [b, K], 1 for a class it has."""

    @property
    def indices(self) -> Tensor:
        """Places in the training split, int64 [b]."""

    @property
    def sample_seeds(self) -> Tensor:
        """What the noise of each picture is drawn from, int64 [b]."""

    @property
    def positions(self) -> Tensor:
        """The place of each picture in the global batch, int64 [b]."""

    @property
    def weights(self) -> Tensor | None:
        """What each picture weighs in the loss, with a mean of 1 over the global batch, [b]; None: all alike."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def part(self, rows: slice) -> Self:
        """Return some of the pictures."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """How the loss of a picture is computed.

    Attributes:
        task: multiclass or multilabel.
        label_smoothing: share of the target spread over all classes, or, multi-label, drawn towards 1/2; in [0, 1).
        class_weights: [K], of each class; multi-label: of its positives. None weighs all alike.
        log_prior: [K], added to the logits in training (multiclass). None adds nothing.
        mixing: of neighbours, or None.
    """

    task: str = MULTICLASS
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    log_prior: Tensor | None = None
    mixing: PairMixing | None = None

    def losses(self, model: nn.Module, batch: TrainBatch, *, step: int, device: torch.device) -> Tensor:
        """Return the training loss of each picture [b] times its weight, in float32 at least.

        Args:
            model: called as `model(images, sample_seeds=...)`.
            batch: a micro-batch of the step; of whole pairs where neighbours are mixed.
            step: steps done.
            device: where to compute.
        """
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        share = None
        if self.mixing is not None and self.mixing.acts_at(step):
            share, of_pixel = self.mixing.shares(step, batch.positions, *images.shape[-2:])
            images = mixed(images, of_pixel.to(device))
        logits = model(images, sample_seeds=batch.sample_seeds.to(device, non_blocking=True))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if share is not None:
            labels = mixed(self._soft(labels, logits), share.to(device)[:, None])
        losses = self.of_logits(logits, labels)
        weights = batch.weights
        if weights is None:
            return losses
        return losses * (weights if share is None else mixed(weights, share)).to(losses)

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each picture [b].

        Args:
            logits: [b, K].
            labels: [b] class indices, or [b, K] shares of classes; multi-label: [b, K] between 0 and 1.
        """
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        smoothing = self.label_smoothing
        if self.task == MULTILABEL:
            targets = labels.to(logits) * (1 - smoothing) + smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")
            return losses.mean(dim=1)
        if self.log_prior is not None:
            logits = logits + self.log_prior.to(logits)
        return functional.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="none")

    def _soft(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return labels as shares of classes."""
        rows = labels if labels.ndim == 2 else functional.one_hot(labels, logits.shape[1])
        return rows.to(logits)


def counted(imbalance: str, *, task: str, counts: Mapping[str, float], num_train: float) -> dict[str, Tensor]:
    """Return what an objective takes from the class counts of the training split.

    Args:
        imbalance: none, loss_weights, balanced_sampler or logit_adjustment.
        task: multiclass or multilabel.
        counts: training pictures of each of K classes, by name, in their order; where pictures weigh differently, what
            those of the class weigh together.
        num_train: training pictures, or what all of them weigh together.

    Returns:
        `class_weights` or `log_prior`, where the switch asks for one.

    Raises:
        RequestError: a class has no picture, or, multi-label, every one; or the switch is not for the task.
    """
    if imbalance == "none":
        return {}
    if task == MULTILABEL and imbalance != "loss_weights":
        raise RequestError(
            f"train.imbalance {imbalance} needs one class per picture; with train.task multilabel use loss_weights"
        )
    number = torch.tensor(list(counts.values()), dtype=torch.float64)
    missing = [name for name, count in counts.items() if count == 0]
    if missing:
        raise RequestError(
            f"train.imbalance {imbalance} needs a training picture of every class; none is of {', '.join(missing)}"
        )
    if task == MULTILABEL:
        everywhere = [name for name, count in counts.items() if count == num_train]
        if everywhere:
            raise RequestError(
                "train.imbalance loss_weights weighs pictures with a class against those without, and every training "
                f"picture has {', '.join(everywhere)}"
            )
        return {"class_weights": (num_train - number) / number}
    if imbalance == "loss_weights":
        return {"class_weights": num_train / (len(counts) * number)}
    return {"log_prior": (number / num_train).log()} if imbalance == "logit_adjustment" else {}
