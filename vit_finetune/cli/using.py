"""Verbs for finished models: evaluate, predict."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_finetune.cli.app import Device, ModelArgument, Overwrite, app
from vit_finetune.common.errors import RequestError

if TYPE_CHECKING:
    from vit_finetune.data import Splits
    from vit_finetune.evaluation import EvalResult, Predictions
    from vit_finetune.predictor import Predictor

MergeTokens = Annotated[
    int,
    typer.Option(
        min=0, metavar="R", help="Merge R patches in each block of a plain ViT (ToMe): faster, not the same figures."
    ),
]


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
    merge_tokens: MergeTokens = 0,
    max_risk: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Show how a model does that abstains to keep this share of wrong answers on val."
        ),
    ] = None,
    foreign: Annotated[
        str | None, typer.Option(help="A folder of pictures of none of the classes; with --max-risk: are they told?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a finished model on labelled pictures; without DATA, on what its run held out.

    MODEL may be an ONNX file that `export` wrote, which runs through onnxruntime.

    Example: vit-finetune evaluate runs/photos ./more_photos
    """
    from vit_finetune.predict import evaluate as score

    if foreign is not None and max_risk is None:
        raise RequestError("--foreign is shown with a threshold; give --max-risk too")
    predictor = _predictor(model, device, merge_tokens)
    section = _data_section(model, data or [])
    result = score(model, section, split=split, predictor=predictor)
    told: dict[str, Any] = {**result.metrics, "num_samples": result.num_samples, "per_class": result.per_class}
    if merge_tokens:
        told["merge_tokens"] = merge_tokens
    num_openings = 0 if data else _note_test(model, section, split, result.metrics)
    if num_openings:
        told["num_test_openings"] = num_openings
    if corruptions:
        from vit_finetune.pictures import run_seed
        from vit_finetune.predict import evaluate_corrupted

        seed = run_seed(model)
        told["corruptions"] = evaluate_corrupted(model, section, split=split, seed=seed, predictor=predictor)
    if max_risk is not None:
        from vit_finetune.abstaining import abstention, threshold_for

        least = threshold_for(predictor, model, max_risk=max_risk)
        told["abstention"] = abstention(
            predictor, section, min_probability=least, split=split, foreign=foreign, result=result
        )
    if as_json:
        print(json.dumps(told))
        return
    print("\n".join(_figure_lines(result)))
    if num_openings:
        from vit_finetune.evaluation import opening_lines

        print(*opening_lines(Path(model)), sep="\n")
    if max_risk is not None:
        print("\n".join(_abstention_lines(told["abstention"])))
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


def _predictor(model: str, device: str | None, merge_tokens: int, **options: Any) -> Predictor:
    """Return what classifies pictures: a finished model, or an exported ONNX file."""
    from vit_finetune.exported import OnnxPredictor, is_onnx
    from vit_finetune.predictor import Predictor

    if not is_onnx(model):
        return Predictor(model, device=device, merge_tokens=merge_tokens, **options)
    if merge_tokens:
        raise RequestError(f"--merge-tokens changes a network, and {model} holds a fixed graph; give the run instead")
    return OnnxPredictor(model, **options)


def _figure_lines(result: EvalResult) -> Iterator[str]:
    """Yield the figures, and a line a class."""
    figures = "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items())
    yield f"{result.num_samples} pictures  {figures}"
    width = max(len(row["class"]) for row in result.per_class)
    for row in result.per_class:
        share = "  none" if row["accuracy"] is None else f"{row['accuracy']:6.4f}"
        yield f"  {row['class']:<{width}}  {share}  {row['num_correct']} of {row['num_samples']}"


def _abstention_lines(told: dict[str, Any]) -> Iterator[str]:
    """Yield how a model that abstains does, in words."""
    answered = f"{told['num_answered']} of {told['num_samples']} answered (coverage {told['coverage']:.4f})"
    risk = "no risk to tell" if told["risk"] is None else f"risk {told['risk']:.4f}"
    bound = f"with 95 % confidence at most {told['risk_bound']:.4f}"
    yield f"abstains below {told['min_probability']:.4f}, chosen on val: {answered}, {risk}, {bound}"
    if told["chosen_here"]:
        yield "         these pictures chose the threshold themselves, so the risk is flattering; give others as DATA"
    if "auroc_foreign" in told:
        yield (
            f"foreign  {told['num_foreign']} pictures: AUROC {told['auroc_foreign']:.4f}, "
            f"{told['foreign_answered']:.4f} of them answered"
        )


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
    max_risk: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Abstain where unsure, so that of the answers on val at most this share is wrong."
        ),
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this probability of the first guess.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Probabilities without the temperature fitted on val.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to list for each picture, best first.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32,
    device: Device = None,
    merge_tokens: MergeTokens = 0,
    overwrite: Overwrite = False,
) -> None:
    """Classify pictures with a finished model.

    Example: vit-finetune predict runs/photos holiday/ --output predictions.csv
    """
    from vit_finetune.evaluation import check_output, write_predictions

    if max_risk is not None and min_probability is not None:
        raise RequestError("--max-risk chooses the least probability; give one of the two")
    if output is not None:
        check_output(output, overwrite=overwrite)
    predictor = _predictor(
        model,
        device,
        merge_tokens,
        batch_size=batch_size,
        temperature=1.0 if raw else None,
        min_probability=min_probability,
    )
    if max_risk is not None:
        from vit_finetune.abstaining import threshold_for

        predictor.min_probability = threshold_for(predictor, model, max_risk=max_risk)
        print(f"abstains below {predictor.min_probability:.4f}, which kept the risk on val", file=sys.stderr)
    if output is not None:
        count, abstained = 0, 0

        def counted() -> Iterator[Predictions]:
            nonlocal count, abstained
            for part in predictor.stream(images):
                count, abstained = count + len(part), abstained + int(part.abstained.sum())
                yield part

        write_predictions(counted(), output, top_k=top_k, overwrite=overwrite)
        without = f" ({abstained} abstained)" if predictor.min_probability is not None else ""
        print(f"{count} predictions in {output}{without}; probabilities {_kind(predictor)}")
        return
    for part in predictor.stream(images):
        for path, best, abstains in zip(part.paths, part.top(top_k), part.abstained, strict=True):
            told = "  ".join(f"{name} {probability:.4f}" for name, probability in best)
            print(f"{path}  abstained: {told}" if abstains else f"{path}  {told}")


def _kind(predictor: Predictor) -> str:
    """Return what the probabilities of a model are, in words."""
    if predictor.thresholds is not None:
        return "as the network gives them, one for each class"
    if not predictor.is_calibrated:
        return "as the network gives them"
    return f"calibrated (temperature {predictor.temperature:.3f})"
