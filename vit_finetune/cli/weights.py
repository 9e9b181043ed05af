"""Verbs for checkpoints and architectures: inspect, convert, models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_finetune.cli.app import Overwrite, app


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
    images: Annotated[
        list[Path] | None, typer.Option(help="Pictures or a folder of them to compare on as well; may be repeated.")
    ] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Split the weights, such as 5GB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan and check everything, write nothing.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print what becomes of every tensor.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as another library reads it, and prove that it computes the same.

    Example: vit-finetune convert ./hf_model ./timm_model --to timm
    """
    from vit_finetune.predict import picture_batches
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
        verify_images=picture_batches(images) if images else None,
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


def _print_summary(name: str) -> None:
    import torch

    from vit_finetune.models import create_model, summarize, summary_lines

    with torch.device("meta"):
        model = create_model(name)
    print("\n".join(summary_lines(summarize(model))))
