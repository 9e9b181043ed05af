"""What the JSON files beside the weights say: architecture, preprocessing, class names.

Three dialects: timm's hub format (`config.json` with `architecture`), transformers' (`config.json` with `model_type`,
`preprocessor_config.json`) and open_clip's (`open_clip_config.json` with `model_cfg`). A key that is absent stays
unknown; nothing is guessed here.

Sources: timm `models/_hub.py` (`save_config_for_hf`, `_parse_model_cfg`); transformers' image processors; open_clip
`transform.py` (`PreprocessCfg`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec

_RESIZE_MODES = {"shortest": "center", "longest": "border", "squash": "squash"}
_PIL_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a configuration file says about the weights beside it; fields as in `Checkpoint`."""

    architecture: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    preprocess: PreprocessSpec | None = None
    class_names: tuple[str, ...] | None = None
    library: Mapping[str, Any] = field(default_factory=dict)


def read_config(config: Mapping[str, Any], where: str) -> Sidecar:
    """Read a configuration of timm's, transformers' or open_clip's kind.

    Args:
        config: the parsed file.
        where: its name, for people.

    Raises:
        RequestError: a value can't be what it is said to be.
    """
    if isinstance(config.get("architecture"), str):
        return read_timm_config(config, where)
    if "model_type" in config:
        return Sidecar(class_names=_transformers_labels(config.get("id2label")), library=config)
    if isinstance(config.get("model_cfg"), Mapping):
        return Sidecar(preprocess=_open_clip_preprocess(config, where), library=config)
    raise RequestError(
        f"{where} has neither 'architecture' (timm's hub format) nor 'model_type' (transformers'); its keys are "
        f"{', '.join(sorted(config)[:8])}"
    )


def read_timm_config(config: Mapping[str, Any], where: str) -> Sidecar:
    """Read timm's hub format, and the older flat one in which the preprocessing keys lie beside `architecture`."""
    pretrained = config.get("pretrained_cfg") or config
    model_args = dict(config.get("model_args") or {})
    model_args.pop("num_classes", None)  # the head's own shape says it
    input_size = pretrained.get("input_size")
    if input_size:
        model_args.setdefault("in_chans", input_size[0])
        if pretrained.get("fixed_input_size"):
            model_args.setdefault("img_size", list(input_size[1:]))
    return Sidecar(
        architecture=config["architecture"],
        model_args=model_args,
        preprocess=_preprocess(pretrained, where),
        class_names=_label_names(config.get("label_names") or pretrained.get("label_names") or config.get("labels")),
    )


def read_preprocessor(config: Mapping[str, Any], where: str) -> PreprocessSpec:
    """Read transformers' `preprocessor_config.json`.

    Raises:
        RequestError: pixels are scaled to another range than [0, 1], or a value is out of range.
    """
    scale = config.get("rescale_factor", 1 / 255)
    if config.get("do_rescale", True) and abs(scale * 255 - 1) > 1e-3:
        raise RequestError(f"{where} scales pixels by {scale} instead of 1/255, which no PreprocessSpec can say")
    values: dict[str, Any] = {"interpolation": _PIL_RESAMPLING.get(config.get("resample", -1))}
    if config.get("do_normalize", True):
        values |= {"mean": config.get("image_mean"), "std": config.get("image_std")}
    else:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    crops = config.get("do_center_crop", False)
    resized, free = _size(config.get("size"), shortest=crops)
    seen = (_size(config.get("crop_size"), shortest=False)[0] if crops else None) or resized
    if seen and resized:
        values |= {"input_size": (3, *seen), "crop_mode": "squash" if free else "center"}
        values["crop_pct"] = min(1.0, min(seen) / min(resized))
    return _preprocess(values, where)


def _open_clip_preprocess(config: Mapping[str, Any], where: str) -> PreprocessSpec | None:
    """Read open_clip's `preprocess_cfg`, which leaves the size to the model's configuration."""
    values = config.get("preprocess_cfg")
    if not isinstance(values, Mapping):
        return None
    size, _ = _size(values.get("size") or config["model_cfg"].get("vision_cfg", {}).get("image_size"), shortest=False)
    mode = _RESIZE_MODES.get(values.get("resize_mode", ""))
    sizes = {"input_size": (3, *size)} if size else {}
    return _preprocess({**values, **sizes, "crop_mode": mode, "crop_pct": 1.0 if mode else None}, where)


def _size(value: Any, *, shortest: bool) -> tuple[tuple[int, int] | None, bool]:
    """Return (height, width) and whether both sides are resized freely; a bare number follows `shortest`."""
    if isinstance(value, int):
        return (value, value), not shortest
    if isinstance(value, list | tuple) and len(value) == 2:
        return (value[0], value[1]), True
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return (value["shortest_edge"], value["shortest_edge"]), False
    if isinstance(value, Mapping) and {"height", "width"} <= value.keys():
        return (value["height"], value["width"]), True
    return None, False


def _preprocess(values: Mapping[str, Any], where: str) -> PreprocessSpec:
    try:
        return PreprocessSpec.from_mapping(values, source=where)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the preprocessing in {where} can't be used: {error}") from error


def _label_names(value: Any) -> tuple[str, ...] | None:
    """Read a list of names, or a mapping of indices to names without gaps; None where there is neither."""
    if isinstance(value, Mapping):
        by_index = {int(index): str(name) for index, name in value.items() if str(index).isdecimal()}
        if sorted(by_index) != list(range(len(value))):
            return None
        return tuple(by_index[index] for index in range(len(by_index))) or None
    return tuple(str(name) for name in value) if isinstance(value, list | tuple) and value else None


def _transformers_labels(value: Any) -> tuple[str, ...] | None:
    """Read `id2label`; its placeholders LABEL_0, LABEL_1, ... name nothing."""
    names = _label_names(value)
    return None if names and all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names
