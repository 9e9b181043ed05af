"""Proving a conversion: the same pictures through the source and through what was written.

The source's side is our network with the source's own tensors. The result's side is the library that the result is for,
reading the folder as its users would; where it isn't installed, or can't build the network from the folder, it is our
network with the folder's tensors read back.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.models.network_config import NetworkConfig
from vit_finetune.models.variants import build_model
from vit_finetune.weights.conversion_report import Verification
from vit_finetune.weights.convert import Conversion, plan_conversion
from vit_finetune.weights.folder import read_folder
from vit_finetune.weights.lazy import Lazy, computed

_NUM_IMAGES = 4
_SEED = 0
# Rounding of one precision, times what a deep network makes of it. Exceeding it means that the functions differ.
_ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def verify_conversion(conversion: Conversion, folder: Path, given: Iterable[Tensor] = ()) -> Verification:
    """Compare source and result on random pictures and on given ones, in float32.

    Args:
        conversion: what was done.
        folder: what was written.
        given: batches [B, C, H, W] of pictures as the network takes them.

    Returns:
        The largest difference of any picture, and how often the best class agrees.

    Raises:
        RequestError: a given batch has another shape.
        WorkError: the difference is more than rounding; the result is not kept.
    """
    config = conversion.config
    generator = torch.Generator().manual_seed(_SEED)
    source = _ours(conversion.ours, config)
    by, forward = _reader(conversion, folder)
    difference, scale, agreeing, num_given = 0.0, 0.0, [], -_NUM_IMAGES
    for images in (torch.randn(_NUM_IMAGES, config.in_chans, *config.img_size, generator=generator), *given):
        _check_pictures(images, config)
        with torch.inference_mode():
            expected, found = source(images.float()), forward(images.float()).float()
        if found.shape != expected.shape:
            raise WorkError(
                f"{by} gives {list(found.shape)} where the source gives {list(expected.shape)}; nothing was kept"
            )
        difference = torch.tensor([difference, float((found - expected).abs().max())]).max().item()  # keeps a NaN
        scale = max(scale, float(expected.abs().max()))
        agreeing.append((found.argmax(-1) == expected.argmax(-1)).float())
        num_given += len(images)
    dtype = min((value.meta.dtype for value in conversion.plan.tensors.values()), key=lambda kind: kind.itemsize)
    if not difference <= _ALLOWED.get(dtype, 1e-3) * max(scale, 1.0):
        raise WorkError(
            f"{by} computes something else: the largest difference is {difference:.2e} at a scale of {scale:.3g}; "
            "nothing was kept"
        )
    has_head = config.num_classes > 0
    return Verification(
        compared="logits" if has_head else "tokens",
        by=("vit_finetune", by),
        images=f"{_NUM_IMAGES} random {f'and {num_given} given ' if num_given else ''}pictures of "
        f"{config.img_size[0]}x{config.img_size[1]} pixels",
        max_abs_difference=difference,
        scale=scale,
        top1_agreement=float(torch.cat(agreeing).mean()) if has_head else None,
    )


def _check_pictures(images: Tensor, config: NetworkConfig) -> None:
    wanted = [config.in_chans, *config.img_size]
    if images.ndim != 4 or list(images.shape[1:]) != wanted or not images.is_floating_point():
        raise RequestError(
            f"the pictures to compare on are {images.dtype} {list(images.shape)}; the network takes floats [B, "
            f"{', '.join(map(str, wanted))}]"
        )


def _ours(tensors: Mapping[str, Lazy], config: NetworkConfig) -> Callable[[Tensor], Tensor]:
    with torch.device("meta"):
        model = build_model(config)
    values = {name: value.float().contiguous() for name, value in computed(tensors).items()}
    model.load_state_dict(values, strict=True, assign=True)
    model.eval()
    return model if config.num_classes else model.forward_features


def _reader(conversion: Conversion, folder: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return what runs the result, in words and as a function."""
    target = conversion.target
    if target.reference is not None and importlib.util.find_spec(target.library) is not None:
        try:
            return target.library, target.reference(folder, conversion.written)
        except Exception as error:  # whatever another library trips over means that it can't open what was written
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WorkError(f"{target.library} can't open the result ({reason}); nothing was kept") from error
    # LayerScale may have been added where there was none; names tell.
    known = {name: value for name, value in conversion.written.to_mapping().items() if name != "init_values"}
    back = plan_conversion(read_folder(folder), to="timm", source=target.name, config=known)
    return "vit_finetune, reading it back", _ours(back.plan.tensors, back.config)
