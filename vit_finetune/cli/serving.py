"""The verb that answers over HTTP: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vit_finetune.cli.app import Device, ModelArgument, app


@app.command()
def serve(
    model: ModelArgument,
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default answers this machine only. There is no log-in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    max_megabytes: Annotated[float, typer.Option(help="Of one request, all its pictures together.")] = 32.0,
    max_megapixels: Annotated[float, typer.Option(help="Of one picture.")] = 50.0,
    max_pictures: Annotated[int, typer.Option(help="Of one batch.")] = 64,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait for the model.")] = 32,
    timeout_seconds: Annotated[float, typer.Option(help="For one request, waiting included.")] = 30.0,
    min_probability: Annotated[
        float | None, typer.Option(min=0, max=1, help="Abstain below this probability of the first guess.")
    ] = None,
    device: Device = None,
) -> None:
    """Serve a finished model: a page to drop a picture on, and JSON for programs.

    Example: vit-finetune serve runs/photos
    """
    from vit_finetune.predictor import Predictor
    from vit_finetune.serve import Limits, require_serve
    from vit_finetune.serve import serve as run

    require_serve()
    limits = Limits(
        max_megabytes=max_megabytes,
        max_megapixels=max_megapixels,
        max_pictures=max_pictures,
        max_waiting=max_waiting,
        timeout_seconds=timeout_seconds,
    )
    predictor = Predictor(model, device=device, min_probability=min_probability)
    run(
        predictor,
        name=Path(model).resolve().name,
        host=host,
        port=port,
        limits=limits,
        ready=lambda address: print(f"serving {model} at {address}   (Ctrl-C stops)", flush=True),
    )
