"""The loss of a picture: targets, weights and priors written out, and compared with torch and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional
from training_helpers import Pictures, pictures, tiny_vit

from vit_finetune.common.errors import RequestError
from vit_finetune.data.image_set import FileStore, ImageSet
from vit_finetune.training.mix import PairMixing
from vit_finetune.training.objective import Objective, counted

COUNTS = {"kauz": 6, "milan": 3, "wren": 1}
CPU = torch.device("cpu")


def test_losses__plain_is_torchs_cross_entropy() -> None:
    """Without anything else it is the cross-entropy of each picture."""
    batch, model = pictures(0), tiny_vit().eval()
    found = Objective().losses(model, batch, step=0, device=CPU)
    expected = functional.cross_entropy(model(batch.images), batch.labels, reduction="none")
    assert torch.equal(found, expected)


def test_of_logits__logit_adjustment_written_out() -> None:
    """Three classes with shares 0.6, 0.3, 0.1 and equal logits: the loss of a class is minus the log of its share."""
    objective = Objective(**counted("logit_adjustment", task="multiclass", counts=COUNTS, num_train=10))
    found = objective.of_logits(torch.zeros(3, 3), torch.tensor([0, 1, 2]))
    assert found.tolist() == pytest.approx([-math.log(0.6), -math.log(0.3), -math.log(0.1)])
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    scaled = [0.6 * math.exp(1), 0.3 * math.exp(2), 0.1 * math.exp(3)]
    assert objective.of_logits(logits, torch.tensor([1])).item() == pytest.approx(-math.log(scaled[1] / sum(scaled)))


def test_counted__loss_weights_are_scikit_learns() -> None:
    """Class weights are scikit-learn's `balanced`, and their mean over the training pictures is 1."""
    labels = np.repeat([0, 1, 2], list(COUNTS.values()))
    weights = counted("loss_weights", task="multiclass", counts=COUNTS, num_train=10)["class_weights"]
    assert weights.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels).tolist())
    assert weights[labels].mean().item() == pytest.approx(1)
    loss = Objective(class_weights=weights).of_logits(torch.zeros(10, 3), torch.from_numpy(labels))
    assert loss.mean().item() == pytest.approx(math.log(3))  # as the plain loss of a head that knows nothing
    assert loss[0].item() == pytest.approx(math.log(3) * 10 / 18)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("imbalance", ["none", "loss_weights", "logit_adjustment"])
def test_of_logits__soft_targets_agree_with_indices(smoothing: float, imbalance: str) -> None:
    """A soft target with everything on one class has the loss of that class's index, weights and smoothing included."""
    extra = counted(imbalance, task="multiclass", counts=COUNTS, num_train=10)
    objective = Objective(label_smoothing=smoothing, **extra)
    logits, labels = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
    soft = torch.eye(3, dtype=torch.float64)[labels]
    torch.testing.assert_close(objective.of_logits(logits, soft), objective.of_logits(logits, labels))


def test_losses__mixed_targets_written_out() -> None:
    """A mixed pair: the network sees the blend, and the loss is the blend of both classes' losses, smoothed."""
    batch, model = pictures(0, 2), tiny_vit().eval()
    mixing = PairMixing(seed=0, mixup_alpha=0.8)
    share = mixing.draw(3, 0, 32, 32).share
    first, second = batch.images
    logits = model(torch.stack([share * first + (1 - share) * second, share * second + (1 - share) * first]))
    own, other = batch.labels, batch.labels.flip(0)
    smooth = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    expected = share * smooth(logits, own) + (1 - share) * smooth(logits, other)
    found = Objective(label_smoothing=0.1, mixing=mixing).losses(model, batch, step=3, device=CPU)
    torch.testing.assert_close(found, expected)


def test_losses__mixing_ends() -> None:
    """From the off step on the loss is the unmixed one."""
    batch, model = pictures(0), tiny_vit().eval()
    objective = Objective(mixing=PairMixing(seed=0, mixup_alpha=0.8, off_step=2))
    plain = Objective().losses(model, batch, step=0, device=CPU)
    assert torch.equal(objective.losses(model, batch, step=2, device=CPU), plain)
    assert not torch.allclose(objective.losses(model, batch, step=1, device=CPU), plain)


def test_of_logits__multilabel_is_torchs() -> None:
    """Several classes a picture: the mean over classes of torch's binary cross-entropy, positives weighed by counts."""
    logits, labels = torch.randn(5, 3), torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    extra = counted("loss_weights", task="multilabel", counts={"a": 3, "b": 3, "c": 1}, num_train=5)
    assert extra["class_weights"].tolist() == pytest.approx([2 / 3, 2 / 3, 4])  # without over with
    found = Objective(task="multilabel", **extra).of_logits(logits, labels.to(torch.uint8))
    expected = nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor([2 / 3, 2 / 3, 4.0]))
    torch.testing.assert_close(found, expected(logits, labels.float()).mean(dim=1))
    smooth = Objective(task="multilabel", label_smoothing=0.2).of_logits(logits, labels)
    targets = torch.where(labels == 1, 0.9, 0.1)
    torch.testing.assert_close(smooth, nn.BCEWithLogitsLoss(reduction="none")(logits, targets).mean(dim=1))


def test_losses__multilabel_mixing() -> None:
    """Several classes a picture are mixed as shares of each class."""
    batch, model = pictures(0, 2), tiny_vit().eval()
    rows = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.uint8)
    batch = type(batch)(batch.images, rows, batch.indices, batch.sample_seeds, batch.positions)
    mixing = PairMixing(seed=0, cutmix_alpha=1.0)
    share = mixing.draw(0, 0, 32, 32).share
    seen: list[torch.Tensor] = []

    def network(images: torch.Tensor, *, sample_seeds: torch.Tensor) -> torch.Tensor:
        seen.append(model(images))
        return seen[0]

    found = Objective(task="multilabel", mixing=mixing).losses(network, batch, step=0, device=CPU)  # type: ignore[arg-type]
    targets = torch.tensor([[share, 1, 1 - share], [1 - share, 1, share]])
    torch.testing.assert_close(found, nn.BCEWithLogitsLoss(reduction="none")(seen[0], targets).mean(dim=1))


@pytest.mark.parametrize(
    ("imbalance", "task", "counts", "message"),
    [
        (
            "loss_weights",
            "multiclass",
            {"a": 3, "b": 0, "c": 7},
            "needs a training picture of every class; none",
        ),
        ("logit_adjustment", "multiclass", {"a": 10, "b": 0, "c": 0}, "none is of b, c"),
        ("balanced_sampler", "multilabel", {"a": 3, "b": 5}, "needs one class per picture; with train.task multilabel"),
        ("loss_weights", "multilabel", {"a": 10, "b": 5}, "every training picture has a"),
    ],
)
def test_counted__refuses(imbalance: str, task: str, counts: dict[str, int], message: str) -> None:
    """What cannot be counted is one line that names the classes."""
    with pytest.raises(RequestError, match=message):
        counted(imbalance, task=task, counts=counts, num_train=10)


def test_counted__the_sampler_needs_no_numbers() -> None:
    """none and balanced_sampler change no loss."""
    for imbalance in ("none", "balanced_sampler"):
        assert counted(imbalance, task="multiclass", counts=COUNTS, num_train=10) == {}


def weighted(batch: Pictures, weights: list[float]) -> Pictures:
    """Return a batch whose pictures weigh so much, with a mean of 1 as the loader gives it."""
    given = torch.tensor(weights, dtype=torch.float64)
    return replace(batch, weights=given / given.mean())


@pytest.mark.parametrize("imbalance", ["none", "loss_weights", "logit_adjustment"])
def test_losses__weight_two_is_the_picture_twice(imbalance: str) -> None:
    """In float64 a batch with the weights 2, 1, 0, 3 has the loss and gradient of a batch that repeats its pictures."""
    model = tiny_vit(dtype=torch.float64).eval()
    plain = pictures(0, 4, dtype=torch.float64)
    times = torch.tensor([2, 1, 0, 3])
    rows = torch.repeat_interleave(torch.arange(4), times)
    repeated = Pictures(*(getattr(plain, item)[rows] for item in ("images", "labels", "indices", "sample_seeds")), rows)
    objective = Objective(**counted(imbalance, task="multiclass", counts=COUNTS, num_train=10))
    gradients = []
    for batch in (weighted(plain, times.tolist()), repeated):
        model.zero_grad()
        loss = objective.losses(model, batch, step=0, device=CPU).mean()
        loss.backward()
        gradients.append((loss.detach(), *(p.grad for p in model.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_losses__mixed_pictures_weigh_the_mixture() -> None:
    """A mixed picture weighs what its shares of both weights make, so those of a pair add up to what they were."""
    batch, model = pictures(0, 2), tiny_vit().eval()
    objective = Objective(mixing=PairMixing(seed=0, mixup_alpha=0.8))
    share = objective.mixing.draw(3, 0, 32, 32).share if objective.mixing else 1.0
    plain = objective.losses(model, batch, step=3, device=CPU)
    found = objective.losses(model, weighted(batch, [3, 1]), step=3, device=CPU) / plain
    assert found.tolist() == pytest.approx([share * 1.5 + (1 - share) * 0.5, share * 0.5 + (1 - share) * 1.5])
    assert found.sum().item() == pytest.approx(2)


def test_counted__weights_count_as_scikit_learns() -> None:
    """Where pictures weigh differently, class weights are scikit-learn's `balanced` of the repeated pictures."""
    labels, times = np.array([0, 0, 1, 2]), np.array([3, 1, 2, 1])
    images = ImageSet(FileStore(Path(), tuple("abcd")), labels, weights=times.astype(float))
    counts = dict(zip(COUNTS, images.class_weights(3).tolist(), strict=True))
    found = counted("loss_weights", task="multiclass", counts=counts, num_train=images.total_weight)["class_weights"]
    repeated = np.repeat(labels, times)
    assert found.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=repeated).tolist())
