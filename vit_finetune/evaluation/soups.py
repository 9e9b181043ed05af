"""Blends of weights chosen by their score: the greedy soup and the WiSE-FT sweep.

How a blend is scored is the caller's: `score` puts the weights into a network and scores it on pictures that were not
trained on. Which of two figures is better is the metric's.

Sources: model soups, Wortsman et al. 2022 (arXiv 2203.05482); WiSE-FT, Wortsman et al. 2021 (2109.01903).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from torch import Tensor

from vit_finetune.common.figures import is_better
from vit_finetune.weights.averaging import average_state_dicts, check_alike, interpolate_state_dicts

WISE_FT_ALPHAS = tuple(tenth / 10 for tenth in range(11))
Score = Callable[[Mapping[str, Tensor]], Mapping[str, float]]


@dataclass(frozen=True)
class Blend:
    """Chosen weights and how they were chosen.

    Attributes:
        state: the weights, on the CPU.
        metrics: their figures.
        chosen: the places of the ingredients, in the order they went in; or the alpha.
        rows: for people and metrics.json: one for each thing that was scored.
    """

    state: dict[str, Tensor]
    metrics: dict[str, float]
    chosen: tuple[int, ...] | float
    rows: tuple[dict[str, Any], ...]


def best_first(figures: Sequence[float], metric: str) -> list[int]:
    """Return the places of figures from the best to the worst; equal ones keep their order."""

    def compare(left: int, right: int) -> int:
        if is_better(metric, figures[left], figures[right]):
            return -1
        return 1 if is_better(metric, figures[right], figures[left]) else 0

    return sorted(range(len(figures)), key=cmp_to_key(compare))


def greedy_blend(states: Sequence[Mapping[str, Tensor]], *, score: Score, metric: str) -> Blend:
    """Average the ingredients that help: best first, each kept if the average with it is no worse.

    The result scores at least as well as the best ingredient.

    Args:
        states: one or more state dicts of one network.
        score: figures of weights on held-out pictures, `metric` among them.
        metric: what decides.

    Returns:
        The soup; a row an ingredient in the order they were tried: `ingredient` (its place), `metrics` of its own,
        `with_it` (figures of the soup with it), `kept`.

    Raises:
        RequestError: there is no ingredient, or they are of different networks.

    Source: 2203.05482, Recipe 1.
    """
    check_alike(states)  # a misfit is told before the first is scored
    own = [dict(score(state)) for state in states]
    order = best_first([figures[metric] for figures in own], metric)
    kept, metrics = [order[0]], own[order[0]]
    rows = [{"ingredient": order[0], "metrics": metrics, "with_it": metrics, "kept": True}]
    for place in order[1:]:
        with_it = dict(score(average_state_dicts([states[index] for index in (*kept, place)])))
        is_kept = not is_better(metric, metrics[metric], with_it[metric])
        rows.append({"ingredient": place, "metrics": own[place], "with_it": with_it, "kept": is_kept})
        if is_kept:
            kept.append(place)
            metrics = with_it
    return Blend(average_state_dicts([states[index] for index in kept]), metrics, tuple(kept), tuple(rows))


def wise_ft_blend(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    *,
    score: Score,
    metric: str,
    alphas: Sequence[float] = WISE_FT_ALPHAS,
) -> Blend:
    """Score the line between the weights before and after fine-tuning and take its best point.

    Alpha 1, the weights after it, is always scored, so that the result is never worse than they are; of equal points
    the one nearest to them is taken.

    Args:
        start: the weights before: the pretrained backbone with the head that fine-tuning started from.
        end: the weights after.
        score: figures of weights on held-out pictures, `metric` among them.
        metric: what decides.
        alphas: where to look, each in [0, 1].

    Returns:
        The best point; a row an alpha, from 0 up: `alpha`, `metrics`.

    Raises:
        RequestError: an alpha is outside of its range, or the two are of different networks.

    Source: WiSE-FT, 2109.01903, section 3 (there alpha is fixed, or chosen on held-out pictures as here).
    """
    rows = []
    best: tuple[float, dict[str, float]] | None = None
    for alpha in sorted({*alphas, 1.0}, reverse=True):
        metrics = dict(score(interpolate_state_dicts(start, end, alpha)))
        rows.append({"alpha": alpha, "metrics": metrics})
        if best is None or is_better(metric, metrics[metric], best[1][metric]):
            best = alpha, metrics
    assert best is not None
    alpha, metrics = best
    return Blend(interpolate_state_dicts(start, end, alpha), metrics, alpha, tuple(reversed(rows)))
