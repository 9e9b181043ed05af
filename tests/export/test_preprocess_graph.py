"""Preprocessing as an ONNX graph: onnxruntime's numbers are Pillow's, to one value of 255 in a pixel of hundreds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.transforms import build_eval_transform
from vit_finetune.export.preprocess_graph import preprocess_graph

# (height, width): landscape, portrait, small, upright banner, lying banner, exact, odd rests of the crop.
SIZES = ((96, 128), (128, 96), (20, 10), (200, 33), (33, 200), (64, 64), (75, 101), (101, 75), (1, 1))
SPECS: list[dict[str, Any]] = [
    {},
    {"crop_pct": 0.9},
    {"crop_mode": "squash", "crop_pct": 0.95},
    {"crop_mode": "border", "crop_pct": 0.9},
    {"input_size": (3, 48, 64)},
    {"crop_mode": "border", "input_size": (3, 48, 64), "crop_pct": 1.0},
    {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.25,)},
    {"interpolation": "bilinear"},
]


def differences(spec: PreprocessSpec, size: tuple[int, int], batch: int = 1) -> np.ndarray:
    """Return by how many of 255 values the graph's pixels differ from those of our transform, for noise."""
    import onnxruntime

    session = onnxruntime.InferenceSession(preprocess_graph(spec, opset=18).SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    (found,) = session.run(None, {"images": images})
    transform = build_eval_transform(spec)
    ours = np.stack([transform(Image.fromarray(image)).numpy() for image in images])
    assert found.shape == ours.shape
    return np.abs(found - ours) * np.array(spec.std).reshape(-1, 1, 1) * 255


@pytest.mark.parametrize("changes", SPECS, ids=str)
def test_preprocess_graph__is_the_evaluation_transform(changes: dict[str, Any]) -> None:
    """Noise of every shape comes out as our transform makes it: rarely one value of 255 beside it, never moved."""
    spec = PreprocessSpec(**{"input_size": (3, 64, 64), **changes})
    found = [differences(spec, size) for size in SIZES]
    most = 2.01 if spec.interpolation == "bilinear" else 1.01
    assert max(each.max() for each in found) <= most
    shares = [(each > 0.5).mean() for each in found]
    assert np.mean(shares) < (0.02 if spec.interpolation == "bilinear" else 0.003)


def test_preprocess_graph__takes_batches_of_one_size() -> None:
    """Pictures of one size go through together."""
    assert differences(PreprocessSpec(input_size=(3, 64, 64)), (90, 120), batch=3).max() <= 1.01


def test_preprocess_graph__refuses_what_it_cannot_follow() -> None:
    """Interpolations and channels that onnxruntime does otherwise are refused with the way out."""
    with pytest.raises(NotRepresentable, match="lanczos.*--no-preprocessing"):
        preprocess_graph(PreprocessSpec(interpolation="lanczos"), opset=18)
    five = PreprocessSpec(input_size=(5, 64, 64), mean=(0.5,) * 5, std=(0.5,) * 5)
    with pytest.raises(NotRepresentable, match="5 channels.*--no-preprocessing"):
        preprocess_graph(five, opset=18)
