"""One picture file -> eight-bit pixels, RGB or many channels, the same way everywhere.

Every picture of a run, a prediction or a data set passes through `decode_picture`, so a file looks
the same to training, evaluation and the finished model. What it is not: a resizer (transforms.py).

Sources: EXIF 2.32, tag 0x0112 (orientation); Pillow's concepts page for modes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.data.channels import channels_header, is_tiff, read_channels

IMAGE_SUFFIXES = frozenset(
    {
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm"),
        *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_16_BIT = 65535
_SAMPLES = ExifTags.Base.SamplesPerPixel


def decode_picture(source: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image | Tensor:
    """Decode a picture as its file says: to upright RGB, or to all its channels where Pillow knows no such picture.

    Args:
        source: a path, the bytes of a file, or an opened picture, which is left as it is.
        name: what to call the picture in an error; the path by default.

    Returns:
        A picture in mode RGB (see `decode_image`), or [C, H, W] uint8 (see `read_channels`).

    Raises:
        RequestError: as `decode_image`, or the channels cannot be read.
    """
    try:
        return decode_image(source, name=name)
    except RequestError as error:
        refusal = error
    data = b""
    if isinstance(source, bytes):
        data = source
    elif not isinstance(source, Image.Image) and Path(source).is_file():
        data = Path(source).read_bytes()
    if not is_tiff(data):
        raise refusal
    try:
        return read_channels(data)
    except Exception as error:  # as for Pillow's plugins
        if isinstance(refusal.__cause__, UnidentifiedImageError):
            raise _unreadable(error, source, name) from error
        raise refusal from error


def decode_image(source: str | Path | bytes | Image.Image, *, name: str | None = None) -> Image.Image:
    """Decode a picture to upright RGB.

    EXIF orientation is applied, 16-bit values are divided by 257 (65535 / 255), alpha is laid on white,
    other modes go through Pillow's `convert`, ICC profiles are ignored, and of an animation the first
    frame counts. (16-bit *colour* files reach us as their high byte: Pillow knows no such mode.)

    Args:
        source: a path, the bytes of a file, or an opened picture, which is left as it is.
        name: what to call the picture in an error; the path by default.

    Returns:
        A picture in mode RGB.

    Raises:
        RequestError: the picture is missing, truncated, not a picture, larger than Pillow's limit
            against decompression bombs, or in a mode without an agreed range (32-bit, float).
    """
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _to_rgb(image)
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        raise _unreadable(error, source, name) from error


@dataclass(frozen=True)
class Header:
    """What a picture's file says about it before its pixels are decoded.

    Attributes:
        width: pixels a row as stored, before EXIF turns it.
        height: rows as stored.
        mode: Pillow's word for channels and depth, or where it has none CHANNELSxBITS.
    """

    width: int
    height: int
    mode: str


def check_header(data: bytes, *, name: str) -> Header:
    """Check that the bytes of a file begin like a picture, and return what they say; pixels are not decoded.

    Args:
        data: the bytes of the file.
        name: what to call it in the error.

    Raises:
        RequestError: no picture format is recognised, or it is larger than Pillow's limit.
    """
    try:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if _is_part(image):
                    return Header(*channels_header(data))
                return Header(image.width, image.height, image.mode)
        except UnidentifiedImageError:
            if not is_tiff(data):
                raise
            return Header(*channels_header(data))
    except Exception as error:  # as in `decode_image`
        raise _unreadable(error, data, name) from error


def _is_part(image: Image.Image) -> TypeGuard[TiffImageFile]:
    """Tell whether a file has channels without a colour meaning, of which Pillow would only show the first."""
    if not isinstance(image, TiffImageFile):
        return False
    is_gray = image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 1
    return is_gray and image.tag_v2.get(_SAMPLES, 1) > len(image.getbands())


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an upright RGB copy of an opened picture."""
    if _is_part(image):
        raise UnidentifiedImageError(f"it has {image.tag_v2[_SAMPLES]} channels, which are no colours")
    image.load()  # first: TIFF and AVIF turn themselves upright here and drop the tag
    # Not ImageOps.exif_transpose: it also writes the EXIF block anew, which fails on blocks it can read.
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        return _from_integers(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floats, which have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture)
        return paper.convert("RGB")
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """Return a grayscale picture of 16 or 32 bits in 8 bits, rounded to the nearest."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > _MAX_16_BIT:
        raise ValueError(
            f"its pixels reach from {values.min()} to {values.max()}, beyond 16 bits; save it with 8 or 16 bits"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _unreadable(error: Exception, source: str | Path | bytes | Image.Image, name: str | None) -> RequestError:
    """Return the one line that says which picture cannot be read, and why."""
    shown = name or (str(source) if isinstance(source, str | Path) else "picture")
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    elif isinstance(error, UnidentifiedImageError):
        reason = "it is not a picture in a format that Pillow knows"
    else:
        reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return RequestError(f"cannot read {shown}: {reason}; repair or remove it")
