"""The words inside a safetensors file survive the way there and back."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.weights import embedded_metadata, read_embedded


def test_embedded_metadata__round_trip_through_a_file(tmp_path):
    """Architecture, arguments, preprocessing and names (not only ASCII) come back; transformers' key is there."""
    spec = PreprocessSpec(mean=(0.5,) * 3, crop_pct=0.9, interpolation="bilinear")
    written = embedded_metadata("vit_x", {"img_size": [64, 96]}, preprocess=spec, class_names=["Käfer", "犬"])
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=written)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    found = read_embedded(metadata)
    assert found is not None
    assert (found.architecture, found.model_args, found.class_names) == (
        "vit_x",
        {"img_size": [64, 96]},
        ("Käfer", "犬"),
    )
    assert found.preprocess is not None
    assert found.preprocess.to_mapping() == spec.to_mapping()


def test_read_embedded__absent_and_damaged():
    """Foreign metadata is None; ours when damaged is an error."""
    assert read_embedded(None) is None
    assert read_embedded({"format": "pt"}) is None
    for text in ("{", "[]", '{"preprocess": {"crop_pct": 7}}'):
        with pytest.raises(RequestError, match="'vit_finetune' is damaged"):
            read_embedded({"vit_finetune": text})
