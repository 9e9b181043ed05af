"""From a source to a model that holds its weights, and the report that says what became of every tensor.

`from_pretrained` builds and loads, `load_pretrained` loads into a model that exists. Both are strict always: the
differences that a caller may ask for are named in `adapt.py`, all else is an error. Neither knows about training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.models.backbone import Backbone
from vit_finetune.models.head import HeadInit, replace_head
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import build_model, variant_config
from vit_finetune.weights.adapt import HEAD_CHOICES, HEAD_PARTS, Fitted, HeadChoice, fit_tensors
from vit_finetune.weights.architecture import names_of, reconciled, source_config, stated_config, stated_grid
from vit_finetune.weights.checkpoint import Checkpoint, naming
from vit_finetune.weights.conversion import Converted, converted_from
from vit_finetune.weights.readout_folder import is_readout_folder, read_readout_folder
from vit_finetune.weights.report import LoadReport
from vit_finetune.weights.resample import POS_EMBED_METHODS
from vit_finetune.weights.sources import read_source


def load_pretrained(
    model: Backbone,
    source: str | Path | Mapping[str, Tensor],
    *,
    head: HeadChoice = "drop",
    pos_embed: str = "bicubic",
    grid: tuple[int, int] | None = None,
) -> LoadReport:
    """Load a source's weights into a model, which keeps its device and dtype.

    Args:
        model: changed in place; with an error it is left as it was.
        source: whatever `read_source` takes.
        head: "drop" leaves the model's head alone; "keep" takes the file's, at the file's size; "match" takes it where
            the shapes agree and drops it, with the reason, where they don't.
        pos_embed: how positions are resampled to another grid: "bicubic" with antialiasing (timm's), "bilinear" with
            aligned corners (the ViT paper's code), "hf", "facebook" or "torchvision"; see `resample_pos_embed`.
        grid: (rows, columns) of patches that the file's position table covers. Needed only where the source doesn't say
            and they are no square.

    Returns:
        What became of every tensor.

    Raises:
        RequestError: the source can't be read, or a tensor is left over, missing, or of another shape or kind.
    """
    _check_choices(head, pos_embed)
    checkpoint = read_source(source)
    with naming(checkpoint):
        known = model.config.to_mapping() | ({"num_classes": 0} if head == "drop" else {})
        converted = converted_from(checkpoint, known, wanted=names_of(model.config))
        _, remarks = reconciled(model.config, converted.told, converted.usual, given=(), built=True)
        grid = grid or stated_grid(checkpoint, converted.tensors)
        if head == "keep":
            _size_head(model, converted.tensors, pos_embed, grid)
        fitted = fit_tensors(
            converted.tensors, model.state_dict(), config=model.config, head=head, pos_embed=pos_embed, grid=grid
        )
    notes = [*remarks, *_put_into(model, fitted, assign=False)]
    return _report(checkpoint, converted, fitted, model, notes)


def from_pretrained(
    source: str | Path | Mapping[str, Tensor],
    *,
    name: str | None = None,
    num_classes: int | None = None,
    head_init: HeadInit = "zeros",
    pos_embed: str = "bicubic",
    grid: tuple[int, int] | None = None,
    **overrides: Any,
) -> tuple[Backbone, LoadReport]:
    """Build the network that a source is made for, with its weights, and with a new head where one is asked for.

    Nothing is initialised first and files stay memory-mapped, so this costs little more than reading the file. Call
    `own_memory` before training.

    Args:
        source: whatever `read_source` takes.
        name: the architecture; needed only where the source doesn't tell it.
        num_classes: outputs of a new head; 0 leaves the head out; None keeps the file's head, if it has one.
        head_init: how a new head starts; see `replace_head`.
        pos_embed: how positions are resampled to another grid; see `load_pretrained`.
        grid: (rows, columns) of patches that the file's position table covers; see `load_pretrained`.
        **overrides: fields of the config that shall differ from the source's, such as `img_size` or `drop_path_rate`.

    Returns:
        The model on the CPU in float32, in training mode, and what became of every tensor.

    Raises:
        RequestError: the source can't be read, doesn't tell its architecture, or doesn't fit it.
    """
    _check_choices("drop", pos_embed)
    if isinstance(source, (str, Path)) and is_readout_folder(source):
        return _from_readout_folder(source, num_classes=num_classes, head_init=head_init, overrides=overrides)
    checkpoint = read_source(source)
    with naming(checkpoint):
        named = variant_config(name) if name else stated_config(checkpoint)
        known = variant_config(name).to_mapping() if name else overrides
        fields = _known_of(checkpoint, known, wants_head=num_classes is None)
        converted = converted_from(checkpoint, fields, wanted=names_of(named) if named else ())
        config = source_config(checkpoint, converted, name=name, known=overrides)
        config, remarks = reconciled(config, converted.told, converted.usual, given=overrides, built=False)
        keeps_head = num_classes is None and "head.weight" in converted.tensors
        classes = int(converted.tensors["head.weight"].shape[0]) if keeps_head else 0
        model = _empty_model(config.updated({**overrides, "num_classes": classes}), name or checkpoint.architecture)
        fitted = fit_tensors(
            converted.tensors,
            model.state_dict(),
            config=model.config,
            head="keep" if keeps_head else "drop",
            pos_embed=pos_embed,
            grid=grid or stated_grid(checkpoint, converted.tensors),
        )
    # A caller's tensors stay the caller's: training must not write into them.
    notes = [*remarks, *_put_into(model, fitted, assign=True, copy=isinstance(source, Mapping))]
    if num_classes:
        replace_head(model, num_classes, init=head_init)
        fitted.newly_initialized += [key for key in model.state_dict() if key.startswith(HEAD_PARTS)]
    return model, _report(checkpoint, converted, fitted, model, notes)


def _known_of(checkpoint: Checkpoint, known: Mapping[str, Any], *, wants_head: bool) -> dict[str, Any]:
    """Return what is known of the file's network, of what is known of the network that is built."""
    fields = {key: value for key, value in known.items() if key != "num_classes"}
    if any("pos" in key for key in checkpoint.tensors):
        fields.pop("img_size", None)  # that of the file, whose positions know it; formulas are made for the new one
    return fields if wants_head else {**fields, "num_classes": 0}  # a new head: the file's isn't wanted


def _from_readout_folder(
    source: str | Path, *, num_classes: int | None, head_init: HeadInit, overrides: Mapping[str, Any]
) -> tuple[Backbone, LoadReport]:
    """Open a folder of ours: as it is, or its backbone under a new head."""
    model, report = read_readout_folder(source)
    if num_classes is None:
        if overrides:
            raise RequestError(f"{source} holds a fitted readout, which fits its network only; drop {list(overrides)}")
        return model, report
    tensors = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    stated = model.backbone.config.to_mapping()
    given = {key: value for key, value in stated.items() if key not in ("num_classes", "img_size", "weight_init")}
    backbone, new = from_pretrained(
        tensors, name=model.name, num_classes=num_classes, head_init=head_init, **{**given, **overrides}
    )
    dropped = {name: "the readout: a new head was asked for" for name in report.loaded if name.startswith("readout.")}
    return backbone, replace(new, dropped={**new.dropped, **dropped}, source=str(source), preprocess=report.preprocess)


def own_memory(model: torch.nn.Module) -> None:
    """Copy the parameters that train out of memory-mapped files, before step 1.

    A mapped weight is a view of its file: a training run would break if the file were replaced under it, and would pay
    for every page at its first step. Frozen parameters stay mapped.

    Args:
        model: changed in place; its parameters stay the same objects.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _check_choices(head: str, pos_embed: str) -> None:
    for word, allowed, option in ((head, HEAD_CHOICES, "head"), (pos_embed, POS_EMBED_METHODS, "pos_embed")):
        if word not in allowed:
            raise RequestError(f"{option}={word!r} is none of {', '.join(allowed)}{did_you_mean(str(word), allowed)}")


def _empty_model(config: NetworkConfig, name: str | None) -> Backbone:
    """Build a network of shapes alone: initialising a ViT-L would cost 7 s, and every value is replaced anyway."""
    with torch.device("meta"):
        model = build_model(config)
    model.name = name
    return model


def _size_head(model: Backbone, tensors: Mapping[str, Tensor], pos_embed: str, grid: tuple[int, int] | None) -> None:
    """Give the model a head of the file's size, once everything else is known to fit."""
    head = tensors.get("head.weight")
    if head is None or head.shape[0] == model.num_classes:
        return
    target = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(HEAD_PARTS)}
    target |= {key: tensors[key] for key in ("head.weight", "head.bias") if key in tensors}
    fit_tensors(tensors, target, config=model.config, head="keep", pos_embed=pos_embed, grid=grid)
    replace_head(model, int(head.shape[0]))


def _put_into(model: Backbone, fitted: Fitted, *, assign: bool, copy: bool = False) -> list[str]:
    """Load the fitted tensors strictly.

    Returns:
        Notes on casts and on values that are not finite.
    """
    target = model.state_dict()
    notes = _warnings(fitted, target)
    values = {key: fitted.tensors.get(key, current) for key, current in target.items()}
    if assign:
        taken: set[int] = set()
        for key, tensor in values.items():
            value = tensor.to(target[key].dtype).contiguous()
            # Two names of one stored tensor become two parameters, which must not train as one.
            values[key] = value.detach().clone() if copy or value.data_ptr() in taken else value
            taken.add(value.data_ptr())
    model.load_state_dict(values, strict=True, assign=assign)
    left = [key for key, tensor in itertools.chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    assert not left, f"nothing was put into {left}"
    return notes


def _warnings(fitted: Fitted, target: Mapping[str, Tensor]) -> list[str]:
    casts: dict[tuple[str, str], int] = {}
    not_finite = []
    for key, tensor in fitted.tensors.items():
        if tensor.dtype != target[key].dtype:
            pair = str(tensor.dtype).removeprefix("torch."), str(target[key].dtype).removeprefix("torch.")
            casts[pair] = casts.get(pair, 0) + 1
        # One pass without memory: a sum that is finite has finite terms. Else look closer, as large terms overflow too.
        if not torch.isfinite(tensor.float().sum()) and not torch.isfinite(tensor.float()).all():
            not_finite.append(key)
    notes = [f"cast {count} tensors from {theirs} to {ours}" for (theirs, ours), count in casts.items()]
    if not_finite:
        more = f" and {len(not_finite) - 5} more" if len(not_finite) > 5 else ""
        notes.append(f"WARNING: NaN or infinite values in {', '.join(sorted(not_finite)[:5])}{more}")
    return notes


def _report(
    checkpoint: Checkpoint, converted: Converted, fitted: Fitted, model: Backbone, notes: list[str]
) -> LoadReport:
    names, remark = checkpoint.class_names, []
    head = converted.tensors.get("head.weight")
    if names is not None and (head is None or head.shape[0] != len(names)):
        rows = "no head" if head is None else f"a head of {head.shape[0]} rows"
        remark = [f"left {len(names)} class names aside: the file has {rows}"]
        names = None
    if model.name is not None and checkpoint.architecture not in (None, model.name):
        remark.append(f"the source calls itself {checkpoint.architecture}; it was loaded as {model.name}")
    new = tuple(fitted.newly_initialized)
    return LoadReport(
        loaded=tuple(key for key in fitted.tensors if key not in new),
        resampled=fitted.resampled,
        dropped={**checkpoint.dropped, **converted.dropped, **fitted.dropped},
        newly_initialized=new,
        preprocess=preprocess_for(model.config, checkpoint.preprocess),
        class_names=names,
        thresholds=checkpoint.thresholds if names is not None else None,
        temperature=checkpoint.temperature if names is not None else None,
        source=checkpoint.description,
        architecture=model.name,
        notes=(*checkpoint.notes, *converted.notes, *fitted.notes, *notes, *remark),
    )


def preprocess_for(config: NetworkConfig, spec: PreprocessSpec | None) -> PreprocessSpec:
    """Return a source's preprocessing at a network's picture size and number of channels.

    Args:
        config: the network.
        spec: what the source says; None takes the defaults.
    """
    spec = spec or PreprocessSpec()
    if config.in_chans == len(spec.mean):
        return spec.with_size(*config.img_size)

    def fit(values: tuple[float, ...]) -> tuple[float, ...]:
        """Average for one channel, else repeat in turn, as the patch kernel is fitted."""
        if config.in_chans == 1:
            return (sum(values) / len(values),)
        return tuple(itertools.islice(itertools.cycle(values), config.in_chans))

    return replace(
        spec,
        input_size=(config.in_chans, *config.img_size),
        mean=fit(spec.mean),
        std=fit(spec.std),
        assumed=tuple(dict.fromkeys((*spec.assumed, "mean", "std"))),
    )
