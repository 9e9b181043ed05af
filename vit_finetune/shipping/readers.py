"""What opens an exported folder, as its user would: the network of the other library, and its own preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.export.onnx import ONNX_NAME
from vit_finetune.export.onnx_session import OnnxNetwork
from vit_finetune.export.torch_export import PT2_NAME
from vit_finetune.weights import from_pretrained


@dataclass(frozen=True)
class Reader:
    """An exported model, opened by what it is for.

    Attributes:
        name: the library and its version.
        of_pixels: prepared pixels [B, C, H, W] -> logits [B, K]; None where the file prepares pictures itself.
        of_picture: an upright RGB picture -> logits [1, K], prepared as the library prepares it; None where it has no
            preprocessing of its own.
    """

    name: str
    of_pixels: Callable[[Tensor], Tensor] | None
    of_picture: Callable[[Image.Image], Tensor] | None


def open_timm(folder: Path) -> Reader:
    """Open a model folder with timm, and its transform as timm makes it from the folder."""
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    transform = create_transform(**settings, is_training=False)
    return Reader(f"timm {timm.__version__}", model, lambda picture: model(transform(picture)[None]))


def open_transformers(folder: Path) -> Reader:
    """Open a folder with transformers' `Auto` classes."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).float().eval()
    processor = AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]

    def of_picture(picture: Image.Image) -> Tensor:
        logits: Tensor = model(**processor(images=picture, return_tensors="pt")).logits
        return logits

    name = f"transformers {version('transformers')}, {type(model).__name__} and {type(processor).__name__}"
    return Reader(name, lambda pixels: model(pixel_values=pixels).logits, of_picture)


def open_torchvision(reference: Callable[[Tensor], Tensor], spec: PreprocessSpec) -> Reader:
    """Open a state dict with torchvision's network, given as a forward pass, and its transform for classifiers."""
    name = f"torchvision {version('torchvision')}"
    height, width = spec.input_size[1:]
    if spec.crop_mode != "center" or height != width:
        return Reader(name, reference, None)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    transform = ImageClassification(
        crop_size=height,
        resize_size=int(height / spec.crop_pct),
        mean=spec.mean,
        std=spec.std,
        interpolation=InterpolationMode(spec.interpolation),
    )
    return Reader(name, reference, lambda picture: reference(transform(picture)[None]))


def open_onnx(folder: Path) -> Reader:
    """Open an ONNX file with onnxruntime."""
    network = OnnxNetwork(folder / ONNX_NAME)
    name = f"onnxruntime {version('onnxruntime')}"
    if not network.takes_bytes:
        return Reader(name, network, None)
    return Reader(name, None, lambda picture: network(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]))


def open_torch_export(folder: Path) -> Reader:
    """Open a `.pt2` file with torch alone."""
    module: Any = torch.export.load(folder / PT2_NAME).module()
    return Reader(f"torch {torch.__version__}", module, None)


def open_safetensors(folder: Path) -> Reader:
    """Open the single file with nothing but itself."""
    model, report = from_pretrained(str(folder / "model.safetensors"))
    model.eval()
    transform = build_eval_transform(report.preprocess)
    return Reader(
        f"vit_finetune {version('vit-finetune')}, the file alone",
        model,
        lambda picture: model(transform(picture)[None]),
    )


def weights_licence(source: str) -> str | None:
    """Return the licence of pretrained weights as timm tells it; None where it is not known.

    Args:
        source: `timm:name.tag`, or `hf-hub:timm/name.tag`, as a load report names it.
    """
    import timm

    name = source.removeprefix("timm:").removeprefix("hf-hub:").removeprefix("timm/").partition("@")[0]
    try:
        found = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError, KeyError):  # no such name
        return None
    return getattr(found, "license", None) if found is not None and "." in name else None
