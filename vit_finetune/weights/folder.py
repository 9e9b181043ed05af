"""Reading a model folder: timm's hub layout, transformers' layout, open_clip's layout, or weights alone.

The weights are the first of `model.safetensors`, its sharded index, `pytorch_model.bin`, its sharded index; a folder
with exactly one other weight file is read too. The folder's `config.json` wins over what the file says about itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.metadata import read_embedded
from vit_finetune.weights.readers import SUFFIXES, FileContent, read_file, read_json, read_shards, split_part
from vit_finetune.weights.sidecars import Sidecar, read_config, read_preprocessor
from vit_finetune.weights.way_back import ASIDE_NAME, earlier_of

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
CONFIG_NAME = "config.json"
OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"


def read_path(path: Path) -> Checkpoint:
    """Read a weight file or a model folder.

    Args:
        path: of either; `file.pth:teacher` is one of several networks in a file.

    Raises:
        RequestError: nothing is there, or it is not what it should be.
    """
    path, part = split_part(path)
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise RequestError(f"there is no file or folder {path}")
    return from_content(read_file(path, part), str(path) if part is None else f"{path}:{part}")


def weights_in(folder: Path) -> Path:
    """Return the file of a folder that holds its weights, or the index that lists them.

    Raises:
        RequestError: there is none, or it can't be told which one.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name != ASIDE_NAME)
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(path.name for path in others[:5])
        raise RequestError(f"{folder} holds several weight files ({names}); give the one you mean")
    inner = folder / "model"
    if inner.is_dir():
        raise RequestError(f"{folder} holds no weights itself; did you mean {inner}?")
    raise RequestError(f"{folder} holds no weights; looked for {', '.join(WEIGHT_NAMES)}")


def read_folder(folder: Path) -> Checkpoint:
    """Read a model folder.

    Raises:
        RequestError: it holds no weights, or one of its files is damaged.
    """
    weights = weights_in(folder)
    content = read_shards(weights) if weights.suffix == ".json" else read_file(weights)
    checkpoint = from_content(content, str(folder))
    sidecar = Sidecar()
    config = folder / (OPEN_CLIP_CONFIG_NAME if weights.name.startswith("open_clip_") else CONFIG_NAME)
    if config.is_file():
        sidecar = read_config(read_json(config), str(config))
    preprocess = sidecar.preprocess
    if preprocess is None and (folder / PREPROCESSOR_NAME).is_file():
        preprocess = read_preprocessor(read_json(folder / PREPROCESSOR_NAME), str(folder / PREPROCESSOR_NAME))
    passed_over = [name for name in WEIGHT_NAMES if name != weights.name and (folder / name).is_file()]
    more = (f"read {weights.name} and left {', '.join(passed_over)} in {folder.name} aside",) if passed_over else ()
    earlier, remarks = earlier_of(folder, checkpoint.tensors)
    return replace(
        checkpoint,
        architecture=sidecar.architecture or checkpoint.architecture,
        model_args=_model_args(sidecar, checkpoint),
        library=sidecar.library,
        preprocess=preprocess or checkpoint.preprocess,
        class_names=sidecar.class_names or checkpoint.class_names,
        notes=(*checkpoint.notes, *more, *remarks),
        earlier=earlier,
    )


def _model_args(sidecar: Sidecar, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return what differs from the architecture; the header adds what timm's `config.json` has no words for."""
    if sidecar.architecture is None:
        return checkpoint.model_args
    same = sidecar.architecture == checkpoint.architecture
    return {**(checkpoint.model_args if same else {}), **sidecar.model_args}


def from_content(content: FileContent, description: str) -> Checkpoint:
    """Turn what a file holds, and what it says about itself, into a `Checkpoint`."""
    embedded = read_embedded(content.metadata)
    return Checkpoint(
        tensors=content.tensors,
        description=description,
        architecture=embedded.architecture if embedded else None,
        model_args=embedded.model_args if embedded else {},
        preprocess=embedded.preprocess if embedded else None,
        class_names=embedded.class_names if embedded else None,
        thresholds=embedded.thresholds if embedded else None,
        temperature=embedded.temperature if embedded else None,
        notes=content.notes,
    )
