"""The JSON files that a library expects beside its weights, and what the weight file says about itself.

timm: `config.json` of its hub format. transformers: `config.json` and `preprocessor_config.json`. Others: what the
format's `config_to` gives. Nothing is read or written here.

Sources: timm `models/_hub.py`; transformers' image processors (`ViTImageProcessor`, `BitImageProcessor`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.weights.metadata import embedded_metadata
from vit_finetune.weights.rules import Format
from vit_finetune.weights.timm_config import NOT_IN_JSON, closest_name, hub_config

_PIL_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def describe(
    config: NetworkConfig,
    target: Format,
    *,
    architecture: str | None,
    preprocess: PreprocessSpec | None,
    class_names: Sequence[str] | None,
    dtype: torch.dtype,
) -> tuple[dict[str, dict[str, Any]], dict[str, str], tuple[str, ...]]:
    """Return the JSON files of a target, the metadata of its safetensors files, and notes.

    Args:
        config: the network.
        target: the format.
        architecture: timm's name, where the source gives it.
        preprocess: the evaluation transform; None where nothing tells it, so that none is written.
        class_names: one per row of the head; None where they have no names.
        dtype: of the weights.
    """
    spec = preprocess.with_size(*config.img_size) if preprocess else None
    if target.library == "timm":
        name, args, unsaid = closest_name(config, architecture)
        shown = spec or PreprocessSpec().with_size(*config.img_size)
        told = hub_config(config, name, args, preprocess=shown, class_names=class_names, tag="converted")
        own = args | {key: config.to_mapping()[key] for key in unsaid}
        notes = tuple(
            f"timm's config.json can't say {key}={getattr(config, key)!r} ({NOT_IN_JSON[key]}): timm alone will build "
            f"{name} without it; vit_finetune reads it from the file's header"
            for key in unsaid
        )
        if spec is None:
            notes += ("nothing tells the preprocessing: timm's config.json, which must, says ImageNet's",)
        return {"config.json": told}, embedded_metadata(name, own, preprocess=spec, class_names=class_names), notes
    if target.config_to is None:
        return {}, {"format": "pt"}, ()
    values = target.config_to(config)
    if "model_type" not in values:
        return {target.config_file: values}, {"format": "pt"}, ()
    labels = class_names or [f"LABEL_{index}" for index in range(config.num_classes)]
    if labels:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    values["dtype"] = str(dtype).removeprefix("torch.")
    files = {target.config_file: values}
    if spec is not None:
        files["preprocessor_config.json"] = _preprocessor(spec)
    return files, {"format": "pt"}, ()


def _preprocessor(spec: PreprocessSpec) -> dict[str, Any]:
    """Say a transform in the words of the image processor that can do it."""
    _, height, width = spec.input_size
    common = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": _PIL_RESAMPLING[spec.interpolation],
        "rescale_factor": 1 / 255,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    if spec.crop_mode == "squash" and spec.crop_pct == 1:
        return {"image_processor_type": "ViTImageProcessor", **common, "size": {"height": height, "width": width}}
    high, wide = (math.floor(side / spec.crop_pct) for side in (height, width))  # as timm rounds
    squashes = spec.crop_mode == "squash"
    return {
        "image_processor_type": "BitImageProcessor",
        **common,
        "size": {"height": high, "width": wide} if squashes else {"shortest_edge": min(high, wide)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_convert_rgb": True,
    }
