"""The model folder: `model.safetensors` and `config.json` in timm's hub and local-dir layout.

One folder serves both `timm.create_model("local-dir:PATH", pretrained=True)` and transformers'
`AutoModelForImageClassification.from_pretrained(PATH)`, whose timm wrapper passes the number of classes itself, so that
`model_args` must not hold it. Class names and preprocessing are in `config.json` and in the header of the weights.

Not here: reading such a folder (weights/), and conversions to other libraries' own classes.

Sources: timm `models/_hub.py` (`_parse_model_cfg`), transformers `models/timm_wrapper/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_folder, write_json
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.models import Backbone, NetworkConfig, RelPosViTConfig, ViTConfig, variant_config
from vit_finetune.weights.lazy import lazily
from vit_finetune.weights.metadata import embedded_metadata
from vit_finetune.weights.timm_config import NOT_IN_JSON, hub_config
from vit_finetune.weights.writers import write_safetensors

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

# `num_classes` stands beside `model_args` (see above); the other one acts before there are weights.
_NOT_AN_ARGUMENT = ("num_classes", "weight_init")
# Options of training that timm's class of the family lacks; without them the network evaluates the same.
_UNKNOWN_TO_TIMM: dict[type[NetworkConfig], tuple[str, ...]] = {RelPosViTConfig: ("patch_drop_rate",)}
# A norm named by a string has this epsilon in timm.
_EPS_OF_NAMED_NORM = 1e-6


def export_model_folder(
    model: Backbone,
    dst: str | Path,
    *,
    preprocess: PreprocessSpec,
    class_names: Sequence[str] | None,
    architecture: str | None = None,
    thresholds: Sequence[float] | None = None,
    temperature: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder that timm, transformers and `from_pretrained` open as it is, whole or not at all.

    Args:
        model: the network, on any device and in any dtype; it is not changed.
        dst: the folder to make.
        preprocess: the evaluation transform of this model.
        class_names: one per row of the head, in order; None where they have no names.
        architecture: timm's name of the network; None takes `model.name`.
        thresholds: of a model for several classes a picture, the probability from which on it has each; None for one
            class a picture.
        temperature: what the logits are divided by for calibrated probabilities, kept for `Predictor`; the weights and
            what timm and transformers compute from them stay as they are.
        overwrite: replace an older model folder at `dst`.

    Returns:
        `dst` as a path.

    Raises:
        RequestError: `dst` exists (and is not to be, or cannot be, replaced), the class names or the preprocessing do
            not fit the model, a weight is not finite, or timm has no words for the network.
    """
    dst = Path(dst)
    _check_place(dst, overwrite)
    name = architecture or model.name
    if name is None:
        raise RequestError(
            "this network has no name in timm; give architecture=, the registered name it comes closest to"
        )
    _check_fit(model.config, preprocess, class_names)
    if thresholds is not None and len(thresholds) != model.num_classes:
        raise RequestError(f"{len(thresholds)} thresholds for {model.num_classes} classes; give one for each")
    model_args = timm_model_args(model.config, name)
    names = None if class_names is None else list(class_names)
    ours = partial(embedded_metadata, preprocess=preprocess, class_names=names)

    with atomic_folder(dst, replace=overwrite) as folder:
        metadata = ours(name, model_args, thresholds=thresholds, temperature=temperature)
        write_safetensors(folder / WEIGHTS_NAME, lazily(_tensors(model)), metadata=metadata)
        told = hub_config(model.config, name, model_args, preprocess=preprocess, class_names=names, tag="finetuned")
        if thresholds is not None:
            told["problem_type"] = "multi_label_classification"  # transformers' word; timm passes it over
        write_json(folder / CONFIG_NAME, told)
    return dst


def timm_model_args(config: NetworkConfig, architecture: str) -> dict[str, Any]:
    """Return the arguments that make timm build this network from a registered name, as JSON values.

    Args:
        config: the network.
        architecture: a name of `list_models()`.

    Returns:
        `img_size`, always, and every field in which the network differs from the name. The number of classes is not
        among them.

    Raises:
        RequestError: timm's JSON cannot say one of the differences, each named with its reason.
    """
    registered = variant_config(architecture)
    if type(registered) is not type(config):
        raise RequestError(
            f"{architecture} is of another family ({type(registered).__name__}) than this network "
            f"({type(config).__name__}); name the architecture that it was made from"
        )
    values, theirs = config.to_mapping(), registered.to_mapping()
    unknown = _UNKNOWN_TO_TIMM.get(type(config), ())
    differing = [name for name in values if name not in (*_NOT_AN_ARGUMENT, *unknown) and values[name] != theirs[name]]
    problems = [f"{name} ({NOT_IN_JSON[name]})" for name in differing if name in NOT_IN_JSON]
    if "norm_layer" in differing and not isinstance(config, ViTConfig):
        problems.append("norm_layer (timm takes a Python class for it)")
    elif "norm_layer" in differing and config.norm_eps != _EPS_OF_NAMED_NORM:
        problems.append(f"norm_layer (timm's norms by name have an epsilon of {_EPS_OF_NAMED_NORM})")
    if problems:
        raise RequestError(
            f"a timm model folder cannot hold this network: it differs from {architecture} in {', '.join(problems)}; "
            "name the architecture that has them, or keep the weights as a plain state dict"
        )
    return {name: values[name] for name in dict.fromkeys(["img_size", *differing])}


def _check_place(dst: Path, overwrite: bool) -> None:
    """Refuse a place that is taken, and to replace anything but a model folder."""
    if not dst.exists():
        return
    if not overwrite:
        raise RequestError(f"{dst} exists already; choose another place or pass overwrite=True")
    others = {path.name for path in dst.iterdir()} - {WEIGHTS_NAME, CONFIG_NAME} if dst.is_dir() else {"a file"}
    if others:
        raise RequestError(f"{dst} is not just a model folder ({', '.join(sorted(others))}); remove it yourself")


def _check_fit(config: NetworkConfig, preprocess: PreprocessSpec, class_names: Sequence[str] | None) -> None:
    """Refuse class names and preprocessing that belong to another model."""
    if class_names is not None and len(class_names) != config.num_classes:
        raise RequestError(f"{len(class_names)} class names for {config.num_classes} classes; give one for each")
    channels, *size = preprocess.input_size
    if channels != config.in_chans:
        raise RequestError(f"the preprocessing makes {channels} channels, the network takes {config.in_chans}")
    if tuple(size) != config.img_size and not config.dynamic_img_size:
        height, width = config.img_size
        raise RequestError(
            f"the preprocessing makes pictures of {size[0]}x{size[1]} pixels, the network takes {height}x{width}; "
            f"pass preprocess.with_size({height}, {width})"
        )


def _tensors(model: Backbone) -> dict[str, torch.Tensor]:
    """Return the state dict on the CPU, each tensor dense and with memory of its own, as safetensors asks.

    A distilled network whose two heads were replaced by one applies that to the mean of both tokens; timm takes the
    mean of two heads, so each gets a copy.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if _is_distilled(model.config):
        for part in ("weight", "bias"):
            if f"head.{part}" in tensors and f"head_dist.{part}" not in tensors:
                tensors[f"head_dist.{part}"] = tensors[f"head.{part}"].clone()
    return tensors


def _is_distilled(config: NetworkConfig) -> bool:
    """Return whether the network has a distillation token, and in timm a second head."""
    return isinstance(config, ViTConfig) and config.distilled
