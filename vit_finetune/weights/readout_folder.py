"""Our own model folder, for readouts that timm has no layout for: a backbone, what reads it, and `readout.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.models import Backbone, FeatureLayout, Readout, ReadoutModel, build_model, build_readout
from vit_finetune.models.rel_pos_vit import RelPosViTConfig
from vit_finetune.models.rope_vit import RopeViTConfig
from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.metadata import checked_temperature
from vit_finetune.weights.readers import read_file, read_json
from vit_finetune.weights.report import LoadReport

READOUT_CONFIG = "readout.json"
_WEIGHTS = "model.safetensors"
_FORMAT = 1
_FAMILIES = {kind.__name__: kind for kind in (ViTConfig, RopeViTConfig, RelPosViTConfig)}


def readout_config(
    backbone: Backbone,
    readout: Readout,
    layout: FeatureLayout,
    *,
    preprocess: PreprocessSpec,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Return the content of `readout.json`.

    Args:
        backbone: the frozen network.
        readout: fitted on its features.
        layout: of those features.
        preprocess: the evaluation transform.
        class_names: K names, in order.
    """
    return {
        "format": _FORMAT,
        "architecture": backbone.name,
        "family": type(backbone.config).__name__,
        "network": backbone.config.updated({"num_classes": 0}).to_mapping(),
        "layers": list(layout.layers),
        "grid": layout.grid,
        "readout": readout.settings(),
        "preprocess": preprocess.to_mapping(),
        "class_names": list(class_names),
    }


def is_readout_folder(source: str | Path) -> bool:
    """Say whether a source is a folder that `readout_config` describes."""
    return (Path(source).expanduser() / READOUT_CONFIG).is_file()


def read_readout_folder(source: str | Path) -> tuple[ReadoutModel, LoadReport]:
    """Build the network of a folder of ours, with its weights.

    Args:
        source: the folder.

    Raises:
        RequestError: a file is missing or damaged, or was written by a later version.
    """
    folder = Path(source).expanduser()
    config = read_json(folder / READOUT_CONFIG)
    try:
        model, spec = _build(config, folder)
        names = tuple(str(name) for name in config["class_names"])
        temperature = config.get("temperature")  # runs before calibration have none
        temperature = None if temperature is None else checked_temperature(temperature)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{folder / READOUT_CONFIG} is damaged ({error!r}); export the readout again") from error
    tensors = read_file(folder / _WEIGHTS).tensors
    _load(model, tensors, folder)
    return model, LoadReport(
        loaded=tuple(tensors),
        resampled={},
        dropped={},
        newly_initialized=(),
        preprocess=spec,
        class_names=names,
        source=str(folder),
        architecture=model.name,
        notes=(f"a {model.readout.name} readout of frozen features",),
        temperature=temperature,
    )


def _build(config: Mapping[str, Any], folder: Path) -> tuple[ReadoutModel, PreprocessSpec]:
    if config["format"] != _FORMAT:
        raise RequestError(
            f"{folder} is written in format {config['format']}, this version reads {_FORMAT}; update vit-finetune"
        )
    network = _FAMILIES[config["family"]].from_mapping(config["network"])
    with torch.device("meta"):
        backbone = build_model(network)
    backbone.name = config["architecture"]
    layout = FeatureLayout(tuple(config["layers"]), int(config["grid"]))
    readout = build_readout(config["readout"])
    model = ReadoutModel(backbone, readout, layout=layout, num_classes=len(config["class_names"]))
    return model, PreprocessSpec.from_mapping(config["preprocess"], source=str(folder / READOUT_CONFIG))


def _load(model: ReadoutModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put tensors into a model, each at its place and of its shape."""
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    wrong = sorted({*wanted} ^ {*tensors}) + [
        name for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape
    ]
    if wrong:
        raise RequestError(
            f"{folder / _WEIGHTS} and {READOUT_CONFIG} do not belong together: {', '.join(wrong[:5])} "
            f"({len(wrong)} tensors) are missing, left over or of another shape"
        )
    model.load_state_dict(dict(tensors), assign=True)
