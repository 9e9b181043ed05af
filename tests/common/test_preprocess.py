"""Preprocessing values: refused where no transform can be built, read and written in timm's words."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm

from vit_finetune.common.preprocess import PreprocessSpec

ALL_FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"interpolation": "cubic"},
            "interpolation 'cubic' is not one of bicubic, bilinear, nearest, lanczos",
        ),
        ({"crop_mode": "middle"}, "crop_mode 'middle' is not one of center, squash, border"),
        ({"crop_pct": 0.0}, "crop_pct 0.0 is not in (0, 1]"),
        ({"crop_pct": 1.1}, "crop_pct 1.1 is not in (0, 1]"),
        (
            {"input_size": (1, 28, 28)},
            "mean has 3 and std 3 values for 1 channels; give one per channel",
        ),
        ({"std": (0.5, 0.5)}, "mean has 3 and std 2 values for 3 channels; give one per channel"),
        ({"std": (0.5, 0.0, 0.5)}, "std (0.5, 0.0, 0.5) holds a value that is not above 0"),
    ],
)
def test_preprocess_spec__refuses(fields: dict[str, Any], message: str) -> None:
    """Each value that no transform can be built from is named, with what is allowed."""
    with pytest.raises(ValueError) as error:
        PreprocessSpec(**fields)
    assert str(error.value) == message


def test_preprocess_spec__reads_timms_pretrained_cfg() -> None:
    """The pretrained_cfg of a timm model is read as it is, and nothing of it is assumed."""
    cfg = timm.create_model("vit_base_patch16_clip_224.openai", pretrained=False, depth=1).pretrained_cfg
    spec = PreprocessSpec.from_mapping(cfg, source="timm")
    assert spec.input_size == (3, 224, 224)
    assert spec.mean == (0.48145466, 0.4578275, 0.40821073)
    assert spec.interpolation == "bicubic"
    assert spec.crop_pct == cfg["crop_pct"]
    assert spec.source == "timm"
    assert set(spec.assumed) <= {"crop_mode"}


def test_preprocess_spec__round_trip() -> None:
    """What is written, through JSON, reads back equal, with nothing assumed."""
    spec = PreprocessSpec(
        input_size=(1, 28, 42),
        mean=(0.1,),
        std=(0.3,),
        interpolation="bilinear",
        crop_pct=1.0,
        crop_mode="squash",
        source="here",
        assumed=(),
    )
    mapping = json.loads(json.dumps(spec.to_mapping()))
    assert tuple(mapping) == ALL_FIELDS
    assert PreprocessSpec.from_mapping(mapping, source="here") == spec


def test_preprocess_spec__names_what_it_assumes() -> None:
    """Keys that a mapping lacks, holds as null, or has in words nobody knows are defaults, and listed as assumed."""
    spec = PreprocessSpec.from_mapping(
        {"mean": [0.5, 0.5, 0.5], "std": None, "interpolation": "random", "num_classes": 5}, source="a file"
    )
    assert spec.mean == (0.5, 0.5, 0.5)
    assert spec.std == (0.229, 0.224, 0.225)
    assert spec.interpolation == "bicubic"
    assert spec.assumed == ("input_size", "std", "interpolation", "crop_pct", "crop_mode")
    assert PreprocessSpec().assumed == ALL_FIELDS


def test_preprocess_spec__with_size() -> None:
    """Another picture size changes height and width only."""
    spec = PreprocessSpec(crop_pct=0.9)
    assert spec.with_size(28, 42) == PreprocessSpec(crop_pct=0.9, input_size=(3, 28, 42))
    assert spec.input_size == (3, 224, 224)
