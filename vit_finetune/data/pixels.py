"""Steps of transforms on pictures of bytes: between Pillow, arrays and tensors, quick resizing, normalising.

Sources: torch's antialiased resize of bytes is modelled on Pillow's (pytorch/pytorch#96848): the same filter, rounded
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from vit_finetune.data.image_set import Picture

BYTES_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


class ToImage(torch.nn.Module):
    """Bytes of any form as a Pillow picture; one that is one already stays."""

    def forward(self, image: Picture) -> Image.Image | Tensor:
        """Return the picture; a tensor, which has more channels than Pillow knows, stays one."""
        if isinstance(image, Image.Image | Tensor):
            return image
        return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


class ToTensor(torch.nn.Module):
    """Bytes of any form as a uint8 tensor [C, H, W]; of an array, which is writable, a view."""

    def forward(self, image: Picture) -> Tensor:
        """Return the tensor."""
        if isinstance(image, Tensor):
            return image
        array = image if isinstance(image, np.ndarray) else np.array(image)
        return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)


class CropOfBytes(torch.nn.Module):
    """torchvision's random crop, with its draws, resized by torch's kernel for bytes.

    Without torchvision's dispatch, and on a crop whose channels lie side by side, it takes a third of the time.

    Args:
        size: height and width of the result.
        scale: of `v2.RandomResizedCrop`.
        ratio: of `v2.RandomResizedCrop`.
        interpolation: of `v2.RandomResizedCrop`.
    """

    def __init__(
        self,
        size: Sequence[int],
        *,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: v2.InterpolationMode,
    ) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation
        self.crop = v2.RandomResizedCrop(size, scale=scale, ratio=ratio)

    def forward(self, image: Tensor) -> Tensor:
        """Return the crop [C, size, size] of bytes [C, H, W]."""
        box = self.crop.make_params([image])
        top, left, height, width = (box[name] for name in ("top", "left", "height", "width"))
        return resized(image[:, top : top + height, left : left + width], self.size, self.interpolation.value)


class FlipOfBytes(torch.nn.Module):
    """torchvision's random flip, with its draw, without its dispatch.

    Args:
        p: probability.
        dim: which dimension: -1 mirrors left and right, -2 top and bottom.
    """

    def __init__(self, p: float, dim: int) -> None:
        super().__init__()
        self.p = p
        self.dim = dim

    def forward(self, image: Tensor) -> Tensor:
        """Return the picture [C, H, W], mirrored or as it is."""
        return image.flip(self.dim) if torch.rand(1) < self.p else image


def resized(image: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Resize a picture of bytes, antialiased.

    Args:
        image: [C, H, W] uint8.
        size: height and width.
        interpolation: bicubic, bilinear or nearest.

    Returns:
        [C, *size] uint8.
    """
    batch = image[None].contiguous(memory_format=torch.channels_last)
    antialias = interpolation in ("bilinear", "bicubic")
    return functional.interpolate(batch, size=tuple(size), mode=interpolation, antialias=antialias)[0]


class Normalise(torch.nn.Module):
    """Multiply bytes by 1/255, subtract the mean, divide by the std.

    Each is one correctly rounded float32 operation, and they are torchvision's (`ToDtype`, `Normalize`), so its
    numbers are equal to these on any device.

    Args:
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return pictures normalised.

        Args:
            images: [..., C, H, W] uint8.

        Returns:
            [..., C, H, W] float32, contiguous.
        """
        return torch.mul(images.contiguous(), 1 / 255).sub_(self.mean).div_(self.std)
