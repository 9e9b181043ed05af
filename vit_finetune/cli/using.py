"""Verbs for finished models: evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_finetune.cli.app import Device, ModelArgument, Overwrite, app

if TYPE_CHECKING:
    from vit_finetune.data import Splits
    from vit_finetune.predict import Predictor


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="A folder of class folders, a list (CSV ...), or keys of a data section as KEY=VALUE.",
        ),
    ] = None,
    *,
    split: Annotated[str | None, typer.Option(help="train, val or test; test if there is one, else val.")] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Score under blur, noise and JPEG at three strengths too.")
    ] = False,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a finished model on labelled pictures; without DATA, on what its run held out.

    MODEL may be an ONNX file that `export` wrote, which runs through onnxruntime.

    Example: vit-finetune evaluate runs/photos ./more_photos
    """
    from vit_finetune.predict import evaluate as score

    predictor = _predictor(model, device)
    section = _data_section(model, data or [])
    result = score(model, section, split=split, predictor=predictor)
    told: dict[str, Any] = {**result.metrics, "num_samples": result.num_samples, "per_class": result.per_class}
    num_openings = 0 if data else _note_test(model, section, split, result.metrics)
    if num_openings:
        told["num_test_openings"] = num_openings
    if corruptions:
        from vit_finetune.pictures import run_seed
        from vit_finetune.predict import evaluate_corrupted

        seed = run_seed(model)
        told["corruptions"] = evaluate_corrupted(model, section, split=split, seed=seed, predictor=predictor)
    if as_json:
        print(json.dumps(told))
        return
    print(f"{result.num_samples} pictures  " + "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items()))
    width = max(len(row["class"]) for row in result.per_class)
    for row in result.per_class:
        share = "  none" if row["accuracy"] is None else f"{row['accuracy']:6.4f}"
        print(f"  {row['class']:<{width}}  {share}  {row['num_correct']} of {row['num_samples']}")
    if num_openings:
        from vit_finetune.evaluation import opening_lines

        print(*opening_lines(Path(model)), sep="\n")
    if corruptions:
        from vit_finetune.data.corruptions import corruption_lines

        print("\n".join(corruption_lines(told["corruptions"], next(key for key in result.metrics if key != "loss"))))


def _note_test(model: str, section: str | dict[str, Any] | Splits, split: str | None, metrics: Any) -> int:
    """Note that a run's own test split was scored and return how often it was by now; 0 where it wasn't."""
    from vit_finetune.evaluation import note_opening
    from vit_finetune.pictures import scored_split

    if isinstance(section, (str, dict)) or scored_split(section, split) != "test":
        return 0
    return note_opening(Path(model), command="evaluate", metrics=metrics)


def _predictor(model: str, device: str | None, batch_size: int = 32) -> Predictor:
    """Return what classifies pictures: a finished model, or an exported ONNX file."""
    from vit_finetune.exported import OnnxPredictor, is_onnx
    from vit_finetune.predict import Predictor

    if is_onnx(model):
        return OnnxPredictor(model, batch_size=batch_size)
    return Predictor(model, device=device, batch_size=batch_size)


def _data_section(model: str, data: list[str]) -> str | dict[str, Any] | Splits:
    """Return the folder, the data section or the run's own splits that the arguments of `evaluate` mean."""
    from vit_finetune.pictures import run_splits
    from vit_finetune.recipe import apply_override

    if len(data) == 1 and "=" not in data[0]:
        return data[0]
    if not data:
        return run_splits(model)
    values: dict[str, Any] = {}
    for text in data:
        apply_override(values, text if text.startswith("data.") else f"data.{text}")
    return {**values["data"]}


@app.command()
def predict(
    model: ModelArgument,
    images: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.")],
    *,
    output: Annotated[Path | None, typer.Option(help="Write .csv, .parquet or .jsonl instead of printing.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to list for each picture, best first.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Classify pictures with a finished model.

    Example: vit-finetune predict runs/photos holiday/ --output predictions.csv
    """
    from vit_finetune.evaluation import check_output, write_predictions

    if output is not None:
        check_output(output, overwrite=overwrite)
    predictions = _predictor(model, device, batch_size)(images)
    if output is not None:
        write_predictions(predictions, output, top_k=top_k, overwrite=overwrite)
        print(f"{len(predictions)} predictions in {output}")
        return
    for path, best in zip(predictions.paths, predictions.top(top_k), strict=True):
        print(f"{path}  " + "  ".join(f"{name} {probability:.4f}" for name, probability in best))
