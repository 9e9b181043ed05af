"""A readout on its backbone as ONNX, for where timm has no layout: pixels in, logits out, checked against torch."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vit_finetune.common.errors import WorkError
from vit_finetune.common.files import atomic_folder

ONNX_NAME = "model.onnx"
_NEEDED = ("onnx", "onnxscript")


def missing_for_onnx() -> list[str]:
    """Return the packages of the extra `onnx` that an export needs and that are not installed."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def export_onnx(model: nn.Module, dst: Path, *, input_size: tuple[int, int, int], tolerance: float = 1e-3) -> None:
    """Write a network as `dst/model.onnx`, the number of pictures left open.

    Args:
        model: on the CPU, in eval mode.
        dst: the folder to make.
        input_size: (channels, height, width).
        tolerance: the largest difference of logits between torch and onnxruntime, where that is installed.

    Raises:
        WorkError: onnxruntime computes something else.
    """
    example = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    with atomic_folder(dst) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        torch.onnx.export(
            model,
            (example,),
            folder / ONNX_NAME,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
        if importlib.util.find_spec("onnxruntime") is not None:
            _check(model, folder / ONNX_NAME, input_size, tolerance)


def _check(model: nn.Module, path: Path, input_size: tuple[int, int, int], tolerance: float) -> None:
    """Compare with torch on three pictures, another number than it was traced with."""
    import onnxruntime

    images = torch.randn(3, *input_size, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        ours = model(images).numpy()
    difference = float(np.abs(theirs - ours).max())
    if not difference <= tolerance:
        raise WorkError(f"onnxruntime's logits differ from torch's by {difference:.2g}, more than {tolerance:g}")
