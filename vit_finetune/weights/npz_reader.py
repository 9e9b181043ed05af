"""Reading `.npz` files of numpy arrays without unpickling anything, each array mapped from the file.

Only arrays of numbers are taken. JAX's bfloat16, which numpy doesn't know, lies in such files as two bytes without a
type (`|V2`); it becomes torch's.

Source: numpy's `lib.format` (versions 1.0 to 3.0 of `.npy`).
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.archives import Bytes, member_bytes, opened

_MAX_HEADER = 10_000  # bytes; numpy's own limit
_MAX_AXES = 32
_KINDS = "fiub"  # floats, integers, truth values
_SUFFIX = ".npy"


def read_npz(path: Path) -> dict[str, Tensor]:
    """Map the arrays of a file.

    Args:
        path: a file that `numpy.savez` or JAX wrote.

    Raises:
        RequestError: it is damaged, holds anything but arrays of numbers, or claims to be larger than it is.
    """
    with opened(path) as archive:
        members = archive.namelist()
        if others := [name for name in members if not name.endswith(_SUFFIX)]:
            raise RequestError(f"{path} holds {others[0]}, which is no array; is it an .npz file of numpy's?")
        return {
            name.removesuffix(_SUFFIX): _tensor(member_bytes(archive, name, path), f"{path}: {name}")
            for name in members
        }


def _tensor(data: Bytes, where: str) -> Tensor:
    """Turn the bytes of an `.npy` file into a tensor on the same memory."""
    start, shape, column_order, dtype = _header(data, where)
    is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None and dtype.subdtype is None
    if dtype.hasobject:
        raise RequestError(f"{where} holds Python objects, which could run code when they are read; it was not read")
    if dtype.kind not in _KINDS and not is_bfloat16:
        raise RequestError(f"{where} holds {dtype}, which are no weights")
    if math.prod(shape) * dtype.itemsize != data.size - start:
        raise RequestError(
            f"{where} is damaged or cut off: {list(shape)} of {dtype} don't fill {data.size - start} bytes"
        )
    values: np.ndarray[Any, Any] = (
        data[start:].view("<i2" if is_bfloat16 else dtype).reshape(shape, order="F" if column_order else "C")
    )
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    try:
        tensor = torch.from_numpy(values)
    except TypeError as error:
        raise RequestError(f"{where} holds {dtype}, which torch has no type for") from error
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _header(data: Bytes, where: str) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Return where the values begin, their shape, whether columns come first, and their type."""
    file = io.BytesIO(data[: _MAX_HEADER + 100].tobytes())
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_order, dtype = read(file, max_header_size=_MAX_HEADER)
    except Exception as error:  # the header is Python's notation of a dictionary, and fails in as many ways
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(f"{where} is no array of numpy's, or its header is damaged ({text})") from error
    if len(shape) > _MAX_AXES or any(side < 0 for side in shape):
        raise RequestError(f"{where} has a header that can't be true: shape {str(shape)[:100]}")
    return file.tell(), tuple(shape), column_order, dtype
