"""Verbs that send a finished model elsewhere: export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vit_finetune.cli.app import ModelArgument, Overwrite, app

Images = Annotated[
    list[Path] | None,
    typer.Option(help="Pictures or a folder of them to prove it on; the run's held-out ones if left out."),
]
Target = Annotated[
    str, typer.Option(metavar="TARGET", help="timm, transformers, torchvision, onnx, torch_export or safetensors.")
]


@app.command()
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    *,
    to: Target = "timm",
    images: Images = None,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures to prove it on, at most.")] = 256,
    preprocessing: Annotated[
        bool, typer.Option(help="onnx: take resizing, cropping and normalising into the graph.")
    ] = True,
    precision: Annotated[str, typer.Option(help="onnx: fp32, fp16 or int8.")] = "fp32",
    opset: Annotated[int, typer.Option(help="onnx: the opset, from 18.")] = 18,
    overwrite: Overwrite = False,
) -> None:
    """Write a finished model as something else opens it, and prove that it computes the same.

    Example: vit-finetune export runs/photos photos_onnx --to onnx
    """
    from vit_finetune.shipping import export_model

    result = export_model(
        model,
        out,
        to=to,
        images=images,
        max_images=max_images,
        preprocessing=preprocessing,
        precision=precision,
        opset=opset,
        overwrite=overwrite,
    )
    print("\n".join(result.lines()))


@app.command()
def push(
    model: ModelArgument,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    *,
    to: Target = "timm",
    public: Annotated[bool, typer.Option("--public", help="A new repository is public; else private.")] = False,
    images: Images = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Export and compare, and send nothing.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Send a finished model to the Hugging Face Hub, with its card and the proof.

    Example: vit-finetune push runs/photos me/photos --dry-run
    """
    from vit_finetune.shipping import push_model

    pushed = push_model(
        model, repository, to=to, private=not public, images=images, dry_run=dry_run, overwrite=overwrite
    )
    print("\n".join(pushed.lines()))
