"""The greedy soup and the WiSE-FT sweep on networks of one parameter, whose scores one can work out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation import greedy_blend, wise_ft_blend
from vit_finetune.evaluation.soups import best_first


def point(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor([float(value)])}


def near(target: float, calls: list[float] | None = None):
    """Return a score that is best at `target`: accuracy 1 - |w - target| / 10, loss |w - target|."""

    def score(state: Mapping[str, Tensor]) -> dict[str, float]:
        distance = abs(state["w"].item() - target)
        if calls is not None:
            calls.append(state["w"].item())
        return {"accuracy": 1 - distance / 10, "loss": distance}

    return score


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_greedy__takes_the_best_first_and_keeps_what_helps(metric: str) -> None:
    """Target 5, ingredients 9, 4, 8, 7: order 4 (off by 1), 7 (2), 8 (3), 9 (4); by hand the soup is 4 and 7.

    4 alone is off by 1; with 7 the mean is 5.5, off by 0.5: kept; with 8 too it is 6.33: left out; with 9, 6.67: out.
    """
    calls: list[float] = []
    soup = greedy_blend([point(9), point(4), point(8), point(7)], score=near(5, calls), metric=metric)
    assert soup.chosen == (1, 3)
    assert soup.state["w"].item() == 5.5
    assert [row["ingredient"] for row in soup.rows] == [1, 3, 2, 0]
    assert [row["kept"] for row in soup.rows] == [True, True, False, False]
    assert calls == pytest.approx([9, 4, 8, 7, 5.5, 19 / 3, 20 / 3])
    assert soup.metrics["loss"] == pytest.approx(0.5)


def test_greedy__an_equal_soup_is_kept() -> None:
    """Recipe 1 adds an ingredient when the soup with it is at least as good: two equal networks are both kept."""
    soup = greedy_blend([point(4), point(4), point(0)], score=near(5), metric="accuracy")
    assert soup.chosen == (0, 1)


def test_greedy__is_never_worse_than_its_best_ingredient() -> None:
    """Ingredients on one side of the target do not mix: the best one is the soup, bit for bit."""
    soup = greedy_blend([point(0.3), point(0.1)], score=near(0.4), metric="accuracy")
    assert soup.chosen == (0,)
    assert torch.equal(soup.state["w"], point(0.3)["w"])
    with pytest.raises(RequestError, match="nothing to average"):
        greedy_blend([], score=near(0), metric="accuracy")


def test_best_first__keeps_the_order_of_equals() -> None:
    """A larger accuracy and a smaller loss come first; equal ones stay as they were."""
    assert best_first([0.5, 0.9, 0.5], "accuracy") == [1, 0, 2]
    assert best_first([0.5, 0.9, 0.5], "loss") == [0, 2, 1]


def test_wise_ft__finds_the_best_point_of_the_line() -> None:
    """From 0 to 10 with the target at 7 the best of 0, 0.3, 0.7 and 1 is 0.7; every point is listed, from 0 up."""
    blend = wise_ft_blend(point(0), point(10), score=near(7), metric="accuracy", alphas=(0.7, 0.0, 0.3))
    assert blend.chosen == 0.7
    assert blend.state["w"].item() == pytest.approx(7)
    assert [row["alpha"] for row in blend.rows] == [0.0, 0.3, 0.7, 1.0]
    assert [row["metrics"]["loss"] for row in blend.rows] == pytest.approx([7, 4, 0, 3])


@pytest.mark.parametrize(("target", "alpha", "value"), [(-3.0, 0.0, 0.1), (30.0, 1.0, 0.7)])
def test_wise_ft__end_points_are_the_start_and_the_end(target: float, alpha: float, value: float) -> None:
    """Where an end is best, it is given back bit for bit."""
    blend = wise_ft_blend(point(0.1), point(0.7), score=near(target), metric="loss")
    assert blend.chosen == alpha
    assert torch.equal(blend.state["w"], point(value)["w"])


def test_wise_ft__ties_stay_near_the_end() -> None:
    """Of equal points the one nearest to the fine-tuned weights is taken."""
    blend = wise_ft_blend(point(0), point(10), score=lambda _: {"accuracy": 0.5}, metric="accuracy", alphas=(0, 0.5))
    assert blend.chosen == 1.0
