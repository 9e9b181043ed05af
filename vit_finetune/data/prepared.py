"""Image sets whose pictures have been made ready: decoded quickly, reduced, or cropped for evaluation.

What is done here is the same at every visit of a picture, so it can be kept (cache.py); what varies is the
transform's. Kept or made anew, the pixels are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.decode import decode_jpeg, draft_jpeg, size_of
from vit_finetune.data.image_set import ImageSet, Picture
from vit_finetune.data.pixels import ToTensor, resized
from vit_finetune.data.transforms import build_eval_crop


class Preparation(Protocol):
    """What is done to a picture once; picklable."""

    def __call__(self, images: ImageSet, index: int) -> Picture:
        """Return a picture made ready.

        Raises:
            RequestError: it cannot be read.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return all that the pixels depend on, besides the file, as JSON values."""
        ...

    def num_bytes(self, images: ImageSet, index: int) -> int:
        """Return how many bytes of pixels the picture will have, from its header."""
        ...


@dataclass(frozen=True)
class TrainPreparation:
    """Decode, and reduce to a working size.

    Attributes:
        working_size: the longest that the shorter side may be, in pixels; None leaves pictures as they are.
        draft: decode JPEG files at a reduced scale where `working_size` allows it; see `draft_jpeg`.
        resizer: what reduces, and what the transform will take: "pil" or "torch".
    """

    working_size: int | None = None
    draft: bool = False
    resizer: str = "pil"

    @property
    def is_plain(self) -> bool:
        """Whether it does no more than `ImageSet.load`."""
        return self.working_size is None and self.resizer == "pil"

    def __call__(self, images: ImageSet, index: int) -> Picture:
        """Return a picture, an array where the transform takes arrays."""
        picture: Picture | None = None
        if self.draft or self.resizer == "torch":
            data = images.store.read(index)
            if self.draft and self.working_size is not None:
                picture = draft_jpeg(data, self.working_size)
            if picture is None and self.resizer == "torch":
                picture = decode_jpeg(data)
        if picture is None:
            picture = images.load(index)
        if isinstance(picture, Tensor):
            raise RequestError(
                f"{images.name(index)} has {len(picture)} channels; data.working_size and data.resizer torch are for "
                "pictures of colours"
            )
        if self.working_size is not None:
            picture = _reduced(picture, self.working_size, self.resizer)
        return np.array(picture) if self.resizer == "torch" and isinstance(picture, Image.Image) else picture

    def facts(self) -> dict[str, Any]:
        """Return all that the pixels depend on; how they are decoded in full does not change them."""
        if self.working_size is None:
            return {"pillow": PIL.__version__}
        settings = {"working_size": self.working_size, "draft": self.draft, "resizer": self.resizer}
        return {**settings, "pillow": PIL.__version__, "torch": torch.__version__}

    def num_bytes(self, images: ImageSet, index: int) -> int:
        """Return how many bytes of pixels the picture will have."""
        width, height = size_of(images.store.read(index))
        if self.working_size is not None and min(width, height) > self.working_size:
            width, height = _reduced_size(width, height, self.working_size)
        return width * height * 3


@dataclass(frozen=True)
class EvalPreparation:
    """Decode, resize and crop as evaluation does.

    Attributes:
        spec: of the evaluation transform.
    """

    spec: PreprocessSpec

    def __call__(self, images: ImageSet, index: int) -> Picture:
        """Return the picture that the network sees, in bytes."""
        return build_eval_crop(self.spec)(images.load(index))

    def facts(self) -> dict[str, Any]:
        """Return all that the pixels depend on."""
        spec = {name: str(value) for name, value in self.spec.to_mapping().items()}
        return {"evaluation": spec, "pillow": PIL.__version__, "torchvision": torchvision.__version__}

    def num_bytes(self, images: ImageSet, index: int) -> int:  # noqa: ARG002 - all have one size
        """Return how many bytes of pixels the picture will have."""
        return int(np.prod(self.spec.input_size))


@dataclass(frozen=True, eq=False)
class PreparedImages(ImageSet):
    """An image set whose `picture` is made ready at every visit.

    Attributes:
        prepare: what is done.
    """

    prepare: Preparation

    @classmethod
    def of(cls, images: ImageSet, prepare: Preparation) -> PreparedImages:
        """Return the same pictures, made ready."""
        return cls(images.store, images.labels, prepare, groups=images.groups, weights=images.weights)

    def picture(self, index: int) -> Picture:
        """Return the picture, made ready.

        Raises:
            RequestError: it cannot be read; the message names it.
        """
        return self.prepare(self, index)


def _reduced_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return width and height with the shorter side of `size`."""
    shorter = min(width, height)
    return max(size, round(width * size / shorter)), max(size, round(height * size / shorter))


def _reduced(picture: Image.Image | NDArray[np.uint8], size: int, resizer: str) -> Image.Image | NDArray[np.uint8]:
    """Return a picture with a shorter side of at most `size`, antialiased; smaller ones stay."""
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    if min(height, width) <= size:
        return picture
    wide, high = _reduced_size(width, height, size)
    if resizer == "pil":
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        return image.resize((wide, high), Image.Resampling.BICUBIC)
    small = resized(ToTensor()(picture), (high, wide), "bicubic")
    array: NDArray[np.uint8] = np.ascontiguousarray(small.permute(1, 2, 0).numpy())
    return array
