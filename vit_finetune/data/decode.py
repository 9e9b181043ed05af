"""The quick way from a JPEG file to pixels: simplejpeg where it is installed, or Pillow's at a reduced scale.

What it isn't: another opinion on what a picture looks like. In full size it gives `decode_image`'s pixels, byte for
byte, or None, and then `decode_image` decides; so a damaged file is told of in the same words. A reduced scale is
another picture, which has to be asked for.

Chosen by measurement and upkeep (docs/pictures.md): simplejpeg brings libjpeg-turbo, has wheels for every platform,
and refuses whatever libjpeg only warns of; torchvision's decoder is as quick, but deprecated since 0.29.
"""

from __future__ import annotations

import io
from functools import cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

_START = b"\xff\xd8\xff"
# A reduced picture has at least so many times the pixels, each way, of what it is then resized to.
_MARGIN = 2
_PLAIN_MODE = "RGB"


@cache
def _has_simplejpeg() -> bool:
    """Tell whether the extra `fast` is installed; what is decoded does not depend on it."""
    return find_spec("simplejpeg") is not None


def decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """Decode an ordinary JPEG file: colour, upright and whole.

    Args:
        data: the bytes of the file.

    Returns:
        [H, W, 3] RGB, writable, equal to `images.decode_image`; None for any other file, and without simplejpeg.
    """
    if not _has_simplejpeg() or _opened(data) is None:
        return None
    from simplejpeg import decode_jpeg as decode

    try:
        array: NDArray[np.uint8] = decode(data, colorspace="RGB")  # strict: what libjpeg only warns of is an error too
    except ValueError:
        return None
    return array


def draft_jpeg(data: bytes, least: int) -> Image.Image | None:
    """Decode an ordinary JPEG file at 1/2, 1/4 or 1/8 of its size, where that is still large enough.

    libjpeg leaves out the high frequencies instead of computing and averaging them away.

    Args:
        data: the bytes of the file.
        least: the shorter side that the picture will be resized to; what is decoded has twice that at the least.

    Returns:
        A picture in mode RGB; None where the file has to be decoded in full, or is none of these.
    """
    image = _opened(data)
    if image is None:
        return None
    scale = next((scale for scale in (8, 4, 2) if min(image.size) >= scale * _MARGIN * least), None)
    if scale is None:
        return None
    image.draft(_PLAIN_MODE, (image.width // scale, image.height // scale))
    try:
        image.load()
    except OSError:
        return None
    return image


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height of a picture as its header tells them, turned or not; (0, 0) if it tells none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # as in `decode_image`; who decodes it will say what is wrong
        return 0, 0


def _opened(data: bytes) -> Image.Image | None:
    """Return an ordinary JPEG file with its header read: colour and upright."""
    if not data.startswith(_START):
        return None
    try:
        image = Image.open(io.BytesIO(data))
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # as in `decode_image`, which comes to it again
        return None
    return image if image.format == "JPEG" and image.mode == _PLAIN_MODE and is_upright else None
