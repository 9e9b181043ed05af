"""Tiny networks and files for the tests of the weights room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vit_finetune.models import VisionTransformer, create_model
from vit_finetune.weights import embedded_metadata

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"img_size": (64, 64), "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
NAMES = ("ant", "bee", "cat", "dog", "eel")


def tiny(name: str = NAME, *, seed: int = 0, **overrides: Any) -> VisionTransformer:
    """Return a small network whose every value is random, norms and biases too."""
    model = create_model(name, **{**TINY, **overrides}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def model_args(**more: Any) -> dict[str, Any]:
    """Return what a config.json says about `tiny()`, as JSON values."""
    return {**{key: list(v) if isinstance(v, tuple) else v for key, v in TINY.items() if key != "num_classes"}, **more}


def save_tiny(path: Path, model: VisionTransformer | None = None, **more: Any) -> VisionTransformer:
    """Write a self-describing safetensors file of a tiny network and return the network."""
    model = model or tiny()
    metadata = embedded_metadata(NAME, model_args(**more), class_names=NAMES if model.num_classes == 5 else None)
    save_file(model.state_dict(), path, metadata=metadata)
    return model


def save_folder(folder: Path, model: VisionTransformer | None = None, **config: Any) -> VisionTransformer:
    """Write a folder in timm's hub format and return its network."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model or tiny()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    content = {
        "architecture": NAME,
        "num_classes": model.num_classes,
        "label_names": list(NAMES),
        "model_args": model_args(),
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "fixed_input_size": True,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "crop_mode": "center",
        },
    }
    (folder / "config.json").write_text(json.dumps({**content, **config}))
    return model


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    """Say whether two networks hold bitwise the same state."""
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def small_dinov2(*, swiglu: bool = False, with_head: bool = False) -> Any:
    """Return a tiny random Dinov2 of transformers', every value random."""
    from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, use_swiglu_ffn=swiglu
    )
    model = (Dinov2ForImageClassification if with_head else Dinov2Model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return model
