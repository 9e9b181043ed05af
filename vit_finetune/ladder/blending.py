"""The last rung: averages of the networks that were trained, and points between them and what they started from.

The arithmetic and the choice are `weights/averaging.py`'s and `evaluation/soups.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.common.layout import rung_dir
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.evaluation import Blend, calibrate, greedy_blend, wise_ft_blend
from vit_finetune.export import export_model_folder
from vit_finetune.ladder.telling import PREDICTIONS, Row, write_predictions_of
from vit_finetune.predict import Predictor, evaluate
from vit_finetune.training import on_main
from vit_finetune.weights.averaging import average_state_dicts

if TYPE_CHECKING:
    from accelerate import Accelerator

# Shares of the trained weights; 1, the trained weights alone, is always looked at.
_ALPHAS = (0.25, 0.5, 0.75)


def blend(
    config: Config,
    splits: Splits,
    accelerator: Accelerator,
    *,
    ingredients: Sequence[Row],
    run_dir: Path,
    dst: Path,
) -> None:
    """Write the best average on val as a rung's folder: `model/` and `metrics.json`.

    Args:
        config: says the metric that decides.
        splits: val decides.
        accelerator: of the run; the first process does the work.
        ingredients: rungs whose models are plain networks; at least one was trained.
        run_dir: of the run.
        dst: the folder to make.
    """

    def work() -> None:
        predictors = [Predictor(rung_dir(run_dir, row.rung) / "model") for row in ingredients]
        states = [average_state_dicts([predictor.model.state_dict()]) for predictor in predictors]
        scorer = Predictor(rung_dir(run_dir, ingredients[0].rung) / "model", device=accelerator.device.type)

        def score(state: Mapping[str, Tensor]) -> dict[str, float]:
            scorer.model.load_state_dict(state)
            return evaluate(scorer.model, splits, split="val", predictor=scorer).metrics

        found, summary = _best_blend(ingredients, states, score, config.evaluation.metric)
        scorer.model.load_state_dict(found.state)
        result = evaluate(scorer.model, splits, split="val", predictor=scorer)
        with atomic_folder(dst, replace=True) as folder:
            if splits.val is not None:
                write_predictions_of(splits.val, result, folder / PREDICTIONS, split="val", splits=splits)
            calibration = calibrate(result, result, measured_on="val")
            export = partial(export_model_folder, preprocess=scorer.preprocess, class_names=scorer.class_names)
            export(scorer.model, folder / "model", temperature=calibration.temperature)
            figures = {"num_samples": result.num_samples, "calibration": asdict(calibration)}
            figures["per_class"] = result.per_class
            write_json(folder / "metrics.json", {"split": "val", **result.metrics, **figures, "blend": summary})

    on_main(accelerator, work)


def _best_blend(
    ingredients: Sequence[Row],
    states: Sequence[Mapping[str, Tensor]],
    score: Callable[[Mapping[str, Tensor]], dict[str, float]],
    metric: str,
) -> tuple[Blend, dict[str, object]]:
    """Return the soup of what was trained, drawn towards what it started from as far as val says."""
    trained = [(row, state) for row, state in zip(ingredients, states, strict=True) if row.decision.num_steps]
    starts = [(row, state) for row, state in zip(ingredients, states, strict=True) if not row.decision.num_steps]
    soup = greedy_blend([state for _, state in trained], score=score, metric=metric)
    chosen = soup.chosen if isinstance(soup.chosen, tuple) else ()
    summary: dict[str, object] = {"soup": [trained[place][0].rung for place in chosen], "soup_rows": soup.rows}
    if not starts:
        return soup, summary
    line = wise_ft_blend(starts[0][1], soup.state, score=score, metric=metric, alphas=_ALPHAS)
    return line, {**summary, "start": starts[0][0].rung, "alpha": line.chosen, "wise_ft_rows": line.rows}
