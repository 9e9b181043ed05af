"""Pictures of many channels: TIFF files that Pillow has no mode for, such as satellite or microscope ones.

What Pillow opens is images.py's, and stays a picture of colours there. Needs tifffile, which is no dependency of ours.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF, either byte order
_MAX_PIXELS = 2 * 89_478_485  # Pillow's limit against decompression bombs


def is_tiff(data: bytes) -> bool:
    """Tell whether the bytes of a file begin like a TIFF."""
    return data.startswith(_BEGINNINGS)


def channels_header(data: bytes) -> tuple[int, int, str]:
    """Return the width and height of a TIFF's first picture, and its channels as `CHANNELSxBITS`, such as 5x16.

    Args:
        data: the bytes of the file.

    Raises:
        ValueError: it is not one that we read.
    """
    with _opened(data) as file:
        height, width, channels, dtype = _shape(file)
    return width, height, f"{channels}x{8 * dtype.itemsize}"


def read_channels(data: bytes) -> Tensor:
    """Return the first picture of a TIFF with all its channels.

    16-bit values are divided by 257 and rounded to the nearest, as those of gray pictures are.

    Args:
        data: the bytes of the file.

    Returns:
        [C, H, W] uint8.

    Raises:
        ValueError: it is not one that we read.
    """
    with _opened(data) as file:
        _shape(file)
        series = file.series[0]
        values: NDArray[Any] = series.asarray()
    if series.axes[0] == "Y":
        values = np.moveaxis(values, -1, 0)
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) + 128) // 257
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.uint8))


def _opened(data: bytes) -> Any:
    """Return a TIFF file, opened."""
    try:
        import tifffile
    except ImportError as error:
        raise ValueError("a TIFF of this kind needs tifffile; pip install tifffile") from error
    return tifffile.TiffFile(io.BytesIO(data))


def _shape(file: Any) -> tuple[int, int, int, Any]:
    """Return height, width, channels and dtype of the first picture, if it is one that we read."""
    series = file.series[0]
    shape, axes = tuple(series.shape), series.axes
    if series.keyframe.photometric.name != "MINISBLACK":
        raise ValueError(f"its colours are {series.keyframe.photometric.name}, and Pillow cannot read them")
    if len(shape) != 3 or axes not in {"YXS", "SYX", "CYX", "YXC"}:
        raise ValueError(f"it holds an array {shape} with the axes {axes}; one picture [H, W, C] or [C, H, W] is read")
    if series.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"its pixels are {series.dtype}, which has no agreed range; save it with 8 or 16 bits")
    sizes = dict(zip(axes.replace("C", "S"), shape, strict=True))
    if sizes["Y"] * sizes["X"] > _MAX_PIXELS:
        raise ValueError(f"it has {sizes['Y'] * sizes['X']} pixels, which exceeds limit of {_MAX_PIXELS} pixels")
    return sizes["Y"], sizes["X"], sizes["S"], series.dtype
