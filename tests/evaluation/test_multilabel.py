"""Figures of several classes a picture: scikit-learn's, at any cutting; thresholds by trying every one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_helpers import Echo, Rows
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from vit_finetune.common.errors import WorkError
from vit_finetune.evaluation import EvalResult, score, tune_thresholds
from vit_finetune.evaluation.multilabel import average_precision, f1

NAMES = ["cat", "dog", "indoors", "never"]


def case(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits with ties and labels of four classes, the last of which no picture has."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(count, 4, generator=generator) < torch.tensor([0.5, 0.2, 0.7, 0.0])).to(torch.uint8)
    logits = (3 * labels + 2 * torch.randn(count, 4, generator=generator)).round(decimals=0) - 1
    return logits, labels


def scored(sizes: list[int], thresholds: list[float] | None = None) -> EvalResult:
    """Score the case in batches of these sizes, in a mixed order."""
    logits, labels = case()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    batches = [Rows(logits[part], labels[part], part) for part in order.split(sizes)]
    options = {"class_names": NAMES, "num_expected": 60, "multilabel": True, "thresholds": thresholds}
    return score(Echo(), batches, **options)


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.6, 0.5, 0.9]])
def test_score__multilabel_equals_scikit_learn(thresholds: list[float] | None) -> None:
    """Every figure is scikit-learn's, over the classes that occur; a class that does not has no average precision."""
    logits, labels = (tensor.numpy() for tensor in case())
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    guesses = probabilities >= (np.full(4, 0.5) if thresholds is None else np.array(thresholds))
    result = scored([60], thresholds)
    by_class = [log_loss(labels[:, k], probabilities[:, k], labels=[0, 1]) for k in range(4)]
    assert result.metrics == pytest.approx(
        {
            "loss": np.mean(by_class),
            "mean_average_precision": average_precision_score(labels[:, :3], probabilities[:, :3]),
            "macro_f1": f1_score(labels[:, :3], guesses[:, :3], average="macro"),
            "micro_f1": f1_score(labels, guesses, average="micro"),
            "accuracy": accuracy_score(labels, guesses),
        },
        rel=1e-5,
    )
    assert [row["num_samples"] for row in result.per_class] == labels.sum(axis=0).tolist()
    assert result.per_class[3]["average_precision"] is None
    assert [row["threshold"] for row in result.per_class] == (thresholds or [0.5] * 4)
    assert result.labels.tolist() == labels.tolist()


def test_score__multilabel_cutting_changes_nothing() -> None:
    """In batches of any size and order every figure is the same, to the bit, and pictures are in their order."""
    one, many = scored([60]), scored([7, 1, 30, 22])
    assert one.metrics == many.metrics
    assert one.per_class == many.per_class
    assert many.indices.tolist() == list(range(60))


def test_score__multilabel_counts_every_picture() -> None:
    """A picture too few is an error."""
    logits, labels = case(5)
    batch = Rows(logits, labels, torch.arange(5))
    with pytest.raises(WorkError, match="scored 5 pictures of 6"):
        score(Echo(), [batch], class_names=NAMES, num_expected=6, multilabel=True)


marks = arrays.arrays(np.uint8, st.integers(1, 25), elements=st.integers(0, 1))


@given(labels=marks, data=st.data())
def test_average_precision__is_scikit_learns(labels: np.ndarray, data: st.DataObject) -> None:
    """With ties and without."""
    scores = np.array(data.draw(st.lists(st.integers(0, 6), min_size=len(labels), max_size=len(labels)))) / 6
    labels[0] = 1
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))


@given(labels=marks, data=st.data())
def test_tune_thresholds__no_other_is_better(labels: np.ndarray, data: st.DataObject) -> None:
    """Of all thresholds none has a better F1 on these pictures."""
    scores = np.array(data.draw(st.lists(st.integers(0, 6), min_size=len(labels), max_size=len(labels)))) / 6
    (found,) = tune_thresholds(labels[:, None], scores[:, None])

    def figure(threshold: float) -> float:
        guessed = scores >= threshold
        return f1(int((guessed & (labels == 1)).sum()), int(labels.sum()), int(guessed.sum()))

    if labels.any():
        assert figure(found) == max(figure(other) for other in np.linspace(0, 1, 13))
    else:
        assert found == 0.5


def test_tune_thresholds__written_out() -> None:
    """Half way between the last right and the first wrong picture."""
    labels = np.array([[1], [1], [0], [0]])
    assert tune_thresholds(labels, np.array([[0.9], [0.5], [0.25], [0.125]])) == [0.375]
