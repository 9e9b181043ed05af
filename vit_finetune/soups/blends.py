"""Several networks made one: soups of runs, the line from before fine-tuning to after it, a run's last checkpoints.

What is averaged must be one architecture with one class map and one preprocessing, and no ingredient may have trained
on a picture that decides. The arithmetic is weights/averaging.py's, the choice evaluation/soups.py's.

Sources: model soups, Wortsman et al. 2022 (arXiv 2203.05482); WiSE-FT, Wortsman et al. 2021 (2109.01903).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation import WISE_FT_ALPHAS, Blend, greedy_blend, wise_ft_blend
from vit_finetune.soups.kitchen import Kitchen, SoupResult, metric_of
from vit_finetune.training.checkpoint import load_checkpoint, saved_steps
from vit_finetune.weights.averaging import average_state_dicts, check_alike

if TYPE_CHECKING:
    from vit_finetune.pictures import Data
    from vit_finetune.soups.kitchen import Ingredient


def uniform_soup(
    models: Sequence[Ingredient],
    dst: str | Path | None = None,
    *,
    data: Data | None = None,
    split: str | None = None,
    overwrite: bool = False,
) -> SoupResult:
    """Average all models and score each of them and the average.

    Args:
        models: two or more runs, model folders or safetensors files that describe themselves.
        dst: a folder to write the soup to; None writes nothing.
        data: what `evaluate` takes; None takes what the first run held out.
        split: of `data`; None takes val, or a folder of class folders as it is.
        overwrite: replace an older soup at `dst`.

    Returns:
        The soup; a row an ingredient: `ingredient`, `metrics`.

    Raises:
        RequestError: a model cannot be opened, the models do not fit each other, or one trained on what is scored.

    Source: 2203.05482, section 2.
    """
    kitchen = Kitchen.open(models, data, split, dst, overwrite=overwrite)
    rows = [{"ingredient": place, "metrics": kitchen.score(state)} for place, state in enumerate(kitchen.states)]
    return kitchen.serve("uniform_soup", _mean(kitchen, rows))


def greedy_soup(
    models: Sequence[Ingredient],
    dst: str | Path | None = None,
    *,
    data: Data | None = None,
    split: str | None = None,
    metric: str | None = None,
    overwrite: bool = False,
) -> SoupResult:
    """Average the models that help: best first, each kept if the average with it is no worse on held-out pictures.

    Args:
        models: two or more runs, model folders or safetensors files that describe themselves.
        dst: a folder to write the soup to; None writes nothing.
        data: what `evaluate` takes; None takes what the first run held out.
        split: of `data`; None takes val, or a folder of class folders as it is.
        metric: what decides; None takes the first run's `evaluation.metric`, else accuracy.
        overwrite: replace an older soup at `dst`.

    Returns:
        The soup, at least as good on these pictures as the best ingredient.

    Raises:
        RequestError: a model cannot be opened, the models do not fit each other, or one trained on what is scored.

    Source: 2203.05482, Recipe 1.
    """
    kitchen = Kitchen.open(models, data, split, dst, overwrite=overwrite)
    metric = metric or metric_of(models[0])
    return kitchen.serve("greedy_soup", greedy_blend(kitchen.states, score=kitchen.score, metric=metric))


def wise_ft(
    start: Ingredient,
    end: Ingredient,
    dst: str | Path | None = None,
    *,
    data: Data | None = None,
    split: str | None = None,
    metric: str | None = None,
    alphas: Sequence[float] = WISE_FT_ALPHAS,
    overwrite: bool = False,
) -> SoupResult:
    """Score the line from a linear probe to the fine-tuned model and take its best point.

    Args:
        start: the model before: the pretrained backbone with its linear probe (or zero head).
        end: the fine-tuned model.
        dst: a folder to write the result to; None writes nothing.
        data: what `evaluate` takes; None takes what the run `end` held out.
        split: of `data`; None takes val, or a folder of class folders as it is.
        metric: what decides; None takes the `evaluation.metric` of the run `end`, else accuracy.
        alphas: shares of `end` to look at, each in [0, 1]; 1 is always looked at.
        overwrite: replace an older result at `dst`.

    Returns:
        The best point, never worse on these pictures than `end`.

    Raises:
        RequestError: a model cannot be opened, the two do not fit each other, or one trained on what is scored.

    Source: 2109.01903, equation 1.
    """
    kitchen = Kitchen.open([end, start], data, split, dst, overwrite=overwrite)
    blend = wise_ft_blend(
        kitchen.states[1],
        kitchen.states[0],
        score=kitchen.score,
        metric=metric or metric_of(end),
        alphas=alphas,
    )
    return kitchen.serve("wise_ft", blend)


def average_checkpoints(
    run: Ingredient,
    dst: str | Path | None = None,
    *,
    num_last: int = 3,
    data: Data | None = None,
    split: str | None = None,
    overwrite: bool = False,
) -> SoupResult:
    """Average the last checkpoints of one run and score each of them and the average.

    Args:
        run: a finished run.
        dst: a folder to write the result to; None writes nothing.
        num_last: how many of the newest checkpoints; `checkpoint.keep_last` decides how many there are.
        data: what `evaluate` takes; None takes what the run held out.
        split: of `data`; None takes val, or a folder of class folders as it is.
        overwrite: replace an older result at `dst`.

    Returns:
        The average; a row a checkpoint, oldest first: `ingredient`, `step`, `metrics`.

    Raises:
        RequestError: there are fewer checkpoints, one is damaged, or they are not of the finished model's shape.
    """
    root = Path(run if isinstance(run, (str, Path)) else run.run_dir) / "checkpoints"
    steps = saved_steps(root)
    if not 1 <= num_last <= len(steps):
        raise RequestError(
            f"{root} holds {len(steps)} checkpoints, {num_last} were asked for; a run keeps more with "
            "checkpoint.keep_last"
        )
    kitchen = Kitchen.open([run], data, split, dst, overwrite=overwrite)
    steps = steps[-num_last:]
    states = [load_checkpoint(root, step).model for step in steps]
    check_alike([*kitchen.states, *states])
    kitchen = replace(kitchen, states=states, names=[f"{root.parent} at step {step}" for step in steps])
    rows = [
        {"ingredient": place, "step": step, "metrics": kitchen.score(state)}
        for place, (step, state) in enumerate(zip(steps, states, strict=True))
    ]
    return kitchen.serve("average_checkpoints", _mean(kitchen, rows))


def _mean(kitchen: Kitchen, rows: Sequence[dict[str, Any]]) -> Blend:
    """Return the plain mean of all ingredients, scored."""
    state = average_state_dicts(kitchen.states)
    return Blend(state, kitchen.score(state), tuple(range(len(kitchen.states))), tuple(rows))
