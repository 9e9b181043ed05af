"""The running average of the weights: three steps written out, and put back to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_helpers import Run, options_of, plan_of, steps_of, tiny_vit

from vit_finetune.training.averages import WeightAverage


def test_weight_average__three_steps_written_out() -> None:
    """The first update copies; each later one moves by a tenth: 1, then 0.9 + 0.2, then 0.9 of that + 0.4."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9)
    found = []
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
        found.append(average.model.weight.item())
    assert found == pytest.approx([1.0, 1.1, 1.39])
    assert average.num_updates == 3


def test_weight_average__is_put_back(tmp_path) -> None:
    """Tensors and the number of updates of one, put into another: both go on alike, to the bit."""
    model = tiny_vit()
    first = WeightAverage(model, 0.99)
    for seed in (1, 2):
        first.update(tiny_vit(seed=seed))
    second = WeightAverage(model, 0.99)
    second.load(first.tensors(), first.num_updates)
    for average in (first, second):
        average.update(tiny_vit(seed=3))
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


def test_weight_average__has_a_forward_of_its_own(tmp_path) -> None:
    """Made before Accelerate wraps the network, the average computes with its own weights, not the network's."""
    model = tiny_vit()
    average = WeightAverage(model, 0.5)
    Run.start(tmp_path, model).fit(plan_of(num_steps=3), options_of(), batches=steps_of(), average=average)
    images = torch.rand(2, 3, 32, 32)
    twin = tiny_vit(seed=9).eval()
    twin.load_state_dict(average.tensors())
    with torch.no_grad():
        assert torch.equal(average.model.eval()(images), twin(images))
        assert not torch.allclose(average.model(images), model.eval()(images))
    assert average.num_updates == 3
