"""Figures: every picture once, equal to scikit-learn's; ties and NaN never flatter a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from evaluation_helpers import Echo, Rows
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, top_k_accuracy_score
from torch import Tensor, nn

from vit_finetune.common.errors import WorkError
from vit_finetune.evaluation import EvalResult, score
from vit_finetune.evaluation.metrics import ranks


def batches_of(logits: Tensor, labels: Tensor, sizes: Sequence[int], *, order: Tensor | None = None) -> Iterator[Rows]:
    """Yield rows in batches of uneven sizes, in the order of `order`."""
    order = torch.arange(len(labels)) if order is None else order
    for part in torch.split(order, list(sizes)):
        yield Rows(logits[part], labels[part], part)


def names(num_classes: int) -> list[str]:
    return [f"class {number}" for number in range(num_classes)]


def scored(logits: Tensor, labels: Tensor, sizes: Sequence[int] | None = None, *, keep: bool = False) -> EvalResult:
    return score(
        Echo(),
        batches_of(logits, labels, sizes or [len(labels)]),
        class_names=names(logits.shape[1]),
        num_expected=len(labels),
        keep_predictions=keep,
    )


def random_case(num_classes: int, count: int = 101) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(num_classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, num_classes, generator=generator)
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def test_ranks__written_out() -> None:
    """The rank is how many classes come before: those with larger logits, and equal ones of lower index."""
    logits = torch.tensor(
        [
            [3.0, 2.0, 1.0],
            [3.0, 2.0, 1.0],
            [3.0, 2.0, 1.0],
            [1.0, 1.0, 1.0],  # a constant output is right for the first class only
            [1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0],
            [0.0, 2.0, 2.0],
            [0.0, 2.0, 2.0],
            [-math.inf, 0.0, math.inf],
        ]
    )
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 1, 2, 2])
    assert ranks(logits, labels).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("broken", [[0], [1], [2], [0, 1], [0, 1, 2]])
def test_ranks__nan_is_never_correct(label: int, broken: list[int]) -> None:
    """An output that holds a NaN is never a correct first guess, wherever the NaN is."""
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    logits[0, label] = 9.0
    assert ranks(logits, torch.tensor([label])).item() == 0
    logits[0, broken] = math.nan
    assert ranks(logits, torch.tensor([label])).item() > 0


@pytest.mark.parametrize("num_classes", [2, 3, 5, 12])
@pytest.mark.parametrize("sizes", [[101], [1, 99, 1], [16] * 6 + [5]], ids=["one", "uneven", "last short"])
def test_score__equals_scikit_learn(num_classes: int, sizes: list[int]) -> None:
    """Accuracy, macro accuracy, macro F1, top-5 and loss equal scikit-learn's at any batch size; top-5 needs five."""
    logits, labels = random_case(num_classes)
    result = scored(logits, labels, sizes)
    true, guesses = labels.numpy(), logits.argmax(dim=1).numpy()
    probabilities = logits.double().softmax(dim=1).numpy()
    classes = list(range(num_classes))
    expected = {
        "loss": log_loss(true, probabilities, labels=classes),
        "accuracy": accuracy_score(true, guesses),
        "macro_accuracy": balanced_accuracy_score(true, guesses),
        "macro_f1": f1_score(true, guesses, average="macro"),
    }
    if num_classes > 5:
        expected["top5"] = top_k_accuracy_score(true, logits.numpy(), k=5, labels=classes)
    if num_classes == 5:
        expected["top5"] = 1.0
    assert result.metrics == pytest.approx(expected, rel=1e-6)
    assert result.num_samples == 101
    for row in result.per_class:
        own = true == names(num_classes).index(row["class"])
        assert row["num_samples"] == int(own.sum())
        assert row["num_correct"] == int((guesses[own] == true[own]).sum())
        assert row["accuracy"] == row["num_correct"] / row["num_samples"]


def test_score__batch_sizes_change_no_count() -> None:
    """Counts are integers: every figure but the loss is exactly the same in batches of 1 and of 101."""
    logits, labels = random_case(7)
    one, many = scored(logits, labels, [1] * 101), scored(logits, labels)
    assert one.per_class == many.per_class
    assert one.metrics == pytest.approx(many.metrics, rel=1e-12)
    assert {key: value for key, value in one.metrics.items() if key != "loss"} == {
        key: value for key, value in many.metrics.items() if key != "loss"
    }


def test_score__a_class_that_never_occurs() -> None:
    """A class without pictures has no accuracy of its own and does not pull the mean over classes down."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    result = scored(logits, torch.tensor([0, 1, 0, 1]))
    assert result.metrics["macro_accuracy"] == 0.75  # (2 of 2 + 1 of 2) / 2 classes
    assert result.per_class[2] == {"class": "class 2", "num_samples": 0, "num_correct": 0, "accuracy": None}


def test_score__a_constant_model() -> None:
    """A model that says the same of everything is right for the first class only, and its loss is ln K."""
    result = scored(torch.zeros(8, 4), torch.tensor([0, 1, 2, 3] * 2))
    assert result.metrics == pytest.approx(
        {"loss": math.log(4), "accuracy": 0.25, "macro_accuracy": 0.25, "macro_f1": 0.1}
    )


def test_score__nan_outputs() -> None:
    """A model that gives NaN has accuracy 0 and a loss that shows it."""
    result = scored(torch.full((6, 6), math.nan), torch.arange(6))
    assert (result.metrics["accuracy"], result.metrics["top5"]) == (0.0, 0.0)
    assert math.isnan(result.metrics["loss"])


@pytest.mark.parametrize(("given", "expected"), [(9, 10), (11, 10), (0, 1)])
def test_score__missed_or_repeated_pictures(given: int, expected: int) -> None:
    """A picture too few or too many is an error with both numbers, never a slightly wrong figure."""
    logits, labels = torch.zeros(given, 3), torch.zeros(given, dtype=torch.int64)
    batches = batches_of(logits, labels, [given]) if given else iter([])
    with pytest.raises(WorkError) as error:
        score(Echo(), batches, class_names=names(3), num_expected=expected)
    assert str(error.value) == f"scored {given} pictures of {expected}; each must be counted once"


@pytest.mark.parametrize("training", [True, False])
def test_score__mode_is_put_back(training: bool) -> None:
    """The model is scored in eval mode, without gradients, and left in the mode it was in."""
    model = Echo().train(training)
    logits = torch.zeros(4, 3, requires_grad=True)
    batches = batches_of(logits, torch.zeros(4, dtype=torch.int64), [2, 2])
    result = score(model, batches, class_names=names(3), num_expected=4, keep_predictions=True)
    assert model.training is training
    assert model.modes == [False, False]
    assert result.probabilities.shape == (4, 3)


def test_score__predictions_in_the_order_of_the_data() -> None:
    """Kept predictions are in data set order, whatever order they were scored in, and are softmax outputs."""
    logits, labels = random_case(4, 50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    batches = batches_of(logits, labels, [7, 13, 30], order=order)
    result = score(Echo(), batches, class_names=names(4), num_expected=50, keep_predictions=True)
    assert result.indices.tolist() == list(range(50))
    assert result.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(result.probabilities, logits.softmax(dim=1).numpy(), atol=1e-7)
    assert result.probabilities.dtype == np.float32


def test_score__predictions_are_kept_on_request_only() -> None:
    """Without being asked no probabilities are kept."""
    result = scored(*random_case(4))
    assert (len(result.indices), len(result.labels), result.probabilities.shape) == (0, 0, (0, 4))


def test_score__half_precision_outputs() -> None:
    """Outputs in bfloat16 are summed in float32 and above: the loss equals that of the same numbers in float64."""
    logits, labels = random_case(3, 1000)
    logits = logits.bfloat16()
    expected = nn.functional.cross_entropy(logits.double(), labels).item()
    assert scored(logits, labels, [1000]).metrics["loss"] == pytest.approx(expected, rel=1e-6)
