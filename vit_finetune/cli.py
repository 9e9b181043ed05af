"""The command line: thin verbs over the public API. Heavy imports happen inside them."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_finetune.common.errors import RequestError, VitFinetuneError

app = typer.Typer(
    help="From any pretrained ViT checkpoint to a classifier for your own images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RecipesAction = StrEnum("RecipesAction", ["LIST", "SHOW", "COPY"])
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; an accelerator where there is one.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run's folder, a model folder or its safetensors file.")
]


def main() -> None:
    """Run the command line; errors meant for people are one line on stderr and an exit code."""
    try:
        app()
    except VitFinetuneError as error:
        from vit_finetune.training.launch import report_failure

        if not report_failure(error):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        from vit_finetune.training.launch import launched_by_us, lost_a_peer

        if not lost_a_peer(error):
            raise
        if not launched_by_us():
            print("error: stopped, because another process of this run ended", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, the name of a shipped recipe, or a run's folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in run.dir, or start it.")] = False,
    overwrite: Overwrite = False,
    num_processes: Annotated[int, typer.Option(min=1, help="Processes on this machine that share the run.")] = 1,
) -> None:
    """Fine-tune a model as a recipe says.

    Example: vit-finetune train image_folder data.root=./photos run.dir=runs/photos
    """
    from vit_finetune.config import Config

    config = Config.load(recipe, overrides=overrides or [])
    if num_processes > 1:
        from vit_finetune.training.launch import launch

        flags = ["--resume"] * resume + ["--overwrite"] * overwrite
        code, message = launch(["train", recipe, *(overrides or []), *flags], num_processes=num_processes)
        if message is not None:
            print(f"error: {message}", file=sys.stderr)
        sys.exit(code)
    from vit_finetune.finetune import finetune

    finetune(config, resume=resume, overwrite=overwrite)


@app.command()
def evaluate(
    model: ModelArgument,
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA]...", help="A folder of class folders, or keys of a data section as KEY=VALUE."),
    ] = None,
    *,
    split: Annotated[str | None, typer.Option(help="train, val or test; test if there is one, else val.")] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a finished model on labelled pictures; without DATA, on what its run held out.

    Example: vit-finetune evaluate runs/photos ./more_photos
    """
    from vit_finetune.predict import Predictor
    from vit_finetune.predict import evaluate as score

    predictor = Predictor(model, device=device)
    result = score(model, _data_section(model, data or []), split=split, predictor=predictor)
    if as_json:
        print(json.dumps({**result.metrics, "num_samples": result.num_samples, "per_class": result.per_class}))
        return
    print(f"{result.num_samples} pictures  " + "  ".join(f"{key} {value:.4f}" for key, value in result.metrics.items()))
    width = max(len(row["class"]) for row in result.per_class)
    for row in result.per_class:
        share = "  none" if row["accuracy"] is None else f"{row['accuracy']:6.4f}"
        print(f"  {row['class']:<{width}}  {share}  {row['num_correct']} of {row['num_samples']}")


def _data_section(model: str, data: list[str]) -> str | dict[str, Any]:
    """Return the folder or the data section that the arguments of `evaluate` mean."""
    from vit_finetune.recipe import apply_override, read_recipe

    if len(data) == 1 and "=" not in data[0]:
        return data[0]
    if not data:
        if not (Path(model) / "config.yaml").is_file():
            raise RequestError(f"{model} is no run that knows its data; give a folder of class folders")
        section: dict[str, Any] = read_recipe(model)["data"]
        return section
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
    from vit_finetune.predict import Predictor

    if output is not None:
        check_output(output, overwrite=overwrite)
    predictions = Predictor(model, device=device, batch_size=batch_size)(images)
    if output is not None:
        write_predictions(predictions, output, top_k=top_k, overwrite=overwrite)
        print(f"{len(predictions)} predictions in {output}")
        return
    for path, best in zip(predictions.paths, predictions.top(top_k), strict=True):
        print(f"{path}  " + "  ".join(f"{name} {probability:.4f}" for name, probability in best))


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="FILE_OR_FOLDER")],
    *,
    diff: Annotated[str | None, typer.Option(metavar="OTHER", help="Say which tensors differ from another's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is: format, architecture, grid, classes, preprocessing, hash.

    Example: vit-finetune inspect model.safetensors
    """
    from vit_finetune.weights import diff_checkpoints, inspect_checkpoint

    if diff is not None:
        rows = diff_checkpoints(path, diff)
        if as_json:
            print(json.dumps([vars(row) for row in rows]))
            return
        changed = [row.line() for row in rows if row.what != "equal"]
        print("\n".join([f"{len(changed)} of {len(rows)} tensors differ between A = {path} and B = {diff}", *changed]))
        return
    found = inspect_checkpoint(path)
    print(json.dumps(found.to_mapping()) if as_json else "\n".join(found.lines()))


@app.command()
def convert(
    src: Annotated[str, typer.Argument(metavar="SRC", help="A file, a folder, hf-hub:owner/name or timm:name.tag.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    more_hints: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", hidden=True)] = None,
    *,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="timm, hf_vit, torchvision, ...")],
    source: Annotated[str, typer.Option("--from", metavar="FORMAT", help="The format of SRC.")] = "auto",
    hints: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE ...", help="What weights don't tell: num_heads=12 act=gelu_tanh"),
    ] = None,
    head: Annotated[str, typer.Option(help="keep or drop the classifier.")] = "keep",
    img_size: Annotated[int | None, typer.Option(help="Pixels to resample the positions for.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16; each tensor's own if left out.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare source and result on the same pictures.")] = True,
    max_shard_size: Annotated[str | None, typer.Option(help="Split the weights, such as 5GB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and check everything, write nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print what becomes of every tensor.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as another library reads it, and prove that it computes the same.

    Example: vit-finetune convert ./hf_model ./timm_model --to timm
    """
    from vit_finetune.recipe import apply_override
    from vit_finetune.weights import convert_checkpoint

    values: dict[str, Any] = {}
    for text in [*(hints or []), *(more_hints or [])]:
        apply_override(values, f"set.{text}")
    report = convert_checkpoint(
        src,
        dst,
        to=to,
        source=source,
        verify=verify,
        config=values.get("set"),
        head=head,
        img_size=img_size,
        dtype=dtype,
        max_shard_size=max_shard_size,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    print("\n".join([*(report.table_lines() if table else []), *report.lines()]))


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="A name, with * for anything.")] = "*",
    *,
    summary: Annotated[bool, typer.Option("--summary", help="Print the layer table of one model.")] = False,
) -> None:
    """List the architectures, or print the layers of one.

    Example: vit-finetune models '*dinov2*'
    """
    if summary:
        _print_summary(pattern)
        return
    from vit_finetune.models import count_parameters, list_models, variant_config

    names = list_models(pattern)
    if not names:
        variant_config(pattern)  # knows what to suggest
    width = max(len(name) for name in names)
    print(f"{'name':<{width}}  {'parameters':>13}  {'tokens':>6}  {'patch':>5}  {'width':>5}  {'depth':>5}")
    for name in names:
        config = variant_config(name)
        counts = (config.num_tokens, config.patch_size[0], config.embed_dim, config.depth)
        columns = f"{counts[0]:>6}  {counts[1]:>5}  {counts[2]:>5}  {counts[3]:>5}"
        print(f"{name:<{width}}  {count_parameters(config):>13,}  {columns}")


@app.command()
def recipes(
    action: Annotated[RecipesAction, typer.Argument()] = RecipesAction.LIST,
    name: Annotated[str, typer.Argument(help="For show and copy: a name that list prints.")] = "",
    dst: Annotated[Path | None, typer.Argument(metavar="[DEST]", help="For copy: a file or a folder.")] = None,
    *,
    resolved: Annotated[bool, typer.Option("--resolved", help="Show a preset with all keys that it inherits.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """List the recipes and scripts that ship with the package, show one, or copy one to edit it.

    Example: vit-finetune recipes copy vit_paper/cifar10 mine.yaml
    """
    from vit_finetune import shipped

    if action is RecipesAction.LIST:
        print("\n".join(shipped.listing()))
    elif action is RecipesAction.COPY:
        print(shipped.copy_shipped(name, dst, overwrite=overwrite))
    elif resolved:
        from vit_finetune.recipe import read_recipe, write_yaml

        print(write_yaml(read_recipe(shipped.find_shipped(name))), end="")
    else:
        print(shipped.find_shipped(name).read_text(encoding="utf-8"), end="")


def _print_summary(name: str) -> None:
    import torch

    from vit_finetune.models import create_model, summarize, summary_lines

    with torch.device("meta"):
        model = create_model(name)
    print("\n".join(summary_lines(summarize(model))))
