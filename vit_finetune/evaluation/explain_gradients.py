"""Which parts of a picture speak for a class: Grad-CAM on the tokens of the last block.

An adapter around the library grad-cam: it picks the layer, lays the patch tokens out as a picture and leaves prefix
tokens out. Unlike attention, the heat belongs to one class.

Gradients are multiplied with tokens patch by patch before anything is summed: what a patch says to the class token
goes through its own attention, so the mean gradient over patches, which plain Grad-CAM takes, means little here. On the
test's network that spots a bright square it pointed at the square in 0 of 20 pictures, patch by patch in 20.

Sources: Grad-CAM, Selvaraju et al. 2017 (arXiv 1610.02391); `GradCAMElementWise` and the choice of layer, the norm
before the last attention, are of https://github.com/jacobgil/pytorch-grad-cam.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import Backbone
from vit_finetune.models.blocks import ResPostBlock


def require_grad_cam() -> None:
    """Say which extra is missing.

    Raises:
        RequestError: grad-cam is not installed.
    """
    if find_spec("pytorch_grad_cam") is None:
        raise RequestError("Grad-CAM needs the library grad-cam; install it with: pip install 'vit-finetune[explain]'")


def grad_cam(model: Backbone, x: Tensor, *, classes: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Return where pictures speak for a class.

    Args:
        model: the network in eval mode; its weights and gradients are left as they are.
        x: images [B, C, H, W], of one size.
        classes: the class of each picture, in [0, K); None takes each picture's first guess.

    Returns:
        Heat [B, H, W] in [0, 1], each picture's scaled on its own; all zeros where nothing speaks for the class.

    Raises:
        RequestError: grad-cam is missing, the classes do not fit, or the readout has no gradient.
    """
    require_grad_cam()
    from pytorch_grad_cam import GradCAMElementWise
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if classes is not None and (len(classes) != len(x) or not all(0 <= item < model.num_classes for item in classes)):
        raise RequestError(f"classes {list(classes)} for {len(x)} pictures; give each a number < {model.num_classes}")
    rows, columns = model.patch_embed.grid_of(x)

    def as_picture(tokens: Tensor) -> Tensor:
        return rearrange(tokens[:, model.num_prefix_tokens :], "b (r c) d -> b d r c", r=rows, c=columns)

    targets = None if classes is None else [ClassifierOutputTarget(item) for item in classes]
    before = {name: value.grad for name, value in model.named_parameters()}
    with torch.enable_grad(), GradCAMElementWise(model, [_target_layer(model)], reshape_transform=as_picture) as cam:
        try:
            heat: NDArray[np.float32] = cam(x.detach().clone().requires_grad_(), targets=targets)
        except (RuntimeError, TypeError) as error:
            raise RequestError(f"no gradient reaches the tokens of this network ({error})") from error
        finally:
            for name, value in model.named_parameters():
                value.grad = before[name]
    return np.nan_to_num(heat).astype(np.float32)


def _target_layer(model: Backbone) -> nn.Module:
    """Return the layer whose tokens are looked at: they reach the head through attention, so every patch has a say."""
    last = model.blocks[-1]
    if isinstance(last, ResPostBlock) or not hasattr(last, "norm1"):
        if len(model.blocks) < 2:
            raise RequestError("Grad-CAM needs two blocks where norms stand behind attention or beside it")
        before: nn.Module = model.blocks[-2]
        return before
    return last.get_submodule("norm1")
