"""Verbs that look inside a finished model: explain, embed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vit_finetune.cli.app import Device, ModelArgument, Overwrite, app


@app.command()
def explain(
    model: ModelArgument,
    images: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.")],
    *,
    output: Annotated[Path, typer.Option(help="The folder to make.")],
    label: Annotated[
        str | None, typer.Option(help="The class that Grad-CAM is of; each picture's first guess by default.")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw what a finished model looks at: attention, rollout, Grad-CAM, positions, filters.

    Example: vit-finetune explain runs/photos holiday/beach.jpg --output looks/
    """
    from vit_finetune.explaining import write_explanations
    from vit_finetune.predictor import Predictor

    predictor = Predictor(model, device=device)
    folder = write_explanations(predictor, images, output, label=label, overwrite=overwrite)
    print(f"explanations in {folder}; explanations.json lists them")


@app.command()
def embed(
    model: ModelArgument,
    images: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.")],
    *,
    output: Annotated[Path, typer.Option(help="Write .parquet (path, features), .npy (rows only), .csv or .jsonl.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 32,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write features of pictures for retrieval: what the head would see, a row a picture.

    Example: vit-finetune embed runs/photos holiday/ --output features.parquet
    """
    from vit_finetune.evaluation.features_file import check_features_place, write_features
    from vit_finetune.predictor import Predictor

    check_features_place(output, overwrite=overwrite)
    predictor = Predictor(model, device=device, batch_size=batch_size)
    count = write_features(output, predictor.stream_features(images))
    print(f"features of {count} pictures, {predictor.model.embed_dim} each, in {output}")
