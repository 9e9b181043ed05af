"""Small pictures as addresses that carry their own bytes."""

from __future__ import annotations

import base64
import io

from PIL import Image

_MOST_BYTES = 12_000  # of one thumbnail
_QUALITIES = (80, 60, 40, 20)


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as an address, such as `data:image/png;base64,...`.

    Args:
        content: of a file.
        kind: its media type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image: Image.Image, size: int) -> str:
    """Return a picture as the address of a small JPEG; it never takes more than some kilobytes.

    Args:
        image: in mode RGB; it is left as it is.
        size: the longer side, in pixels, at most; a smaller picture keeps its pixels.
    """
    small = image.copy()
    small.thumbnail((size, size))
    content = b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality)
        content = file.getvalue()
        if len(content) <= _MOST_BYTES:
            break
    return data_uri(content, "image/jpeg")
