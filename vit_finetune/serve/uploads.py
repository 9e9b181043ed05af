"""Uploaded bytes -> a picture that is safe to decode."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from vit_finetune.common.errors import RequestError

# Readers of plain pictures; Pillow's others start programs (EPS), follow references or are for archives.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


class TooLarge(RequestError):  # noqa: N818 - it says what is the case; the service answers it with 413
    """A picture has more pixels than the service takes."""


def open_picture(data: bytes, *, name: str, max_pixels: int) -> Image.Image:
    """Open a picture by its content, whatever its name claims; its pixels are not decoded yet.

    Args:
        data: the bytes of the file.
        name: what to call it in an error.
        max_pixels: more are refused.

    Raises:
        RequestError: it is no picture of a plain format.
        TooLarge: it has too many pixels.
    """
    Image.init()  # lists what this build of Pillow can read
    try:
        image = Image.open(io.BytesIO(data), formats=[form for form in _FORMATS if form in Image.OPEN])
    except UnidentifiedImageError:
        raise RequestError(f"{name} is not a picture (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF)") from None
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name} is too large: {error}") from error
    except Exception as error:  # a damaged file makes Pillow's plugins raise nearly anything
        raise RequestError(f"{name} cannot be read: {error}") from error
    if image.width * image.height > max_pixels:
        raise TooLarge(
            f"{name} has {image.width} x {image.height} pixels; at most {max_pixels / 1e6:g} million are taken"
        )
    return image
