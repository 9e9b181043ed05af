"""Features of any number of pictures written as they come: a table with paths, or a bare NumPy array."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_file
from vit_finetune.evaluation.tables import TABLE_SUFFIXES, check_table_place, write_table

Parts = Iterable[tuple[tuple[str | None, ...], np.ndarray]]
_SUFFIXES = (*TABLE_SUFFIXES, ".npy")


def check_features_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a place or an ending that features cannot be written to, before the work is done.

    Args:
        path: the file to come.
        overwrite: an older file may be replaced.

    Raises:
        RequestError: another ending, or the file exists.
    """
    check_table_place(path, "features", _SUFFIXES, overwrite=overwrite)


def write_features(path: Path, parts: Parts) -> int:
    """Write features, each part before the next is asked for; the file appears whole or not at all.

    Args:
        path: ends in .npy for float32 rows only, else as tables do, with a column `path` and a list `features`.
        parts: files and features [b, D], as `Predictor.stream_features` yields them.

    Returns:
        The number of pictures.

    Raises:
        RequestError: there is no picture.
    """
    if path.suffix == ".npy":
        return _write_npy(path, parts)
    rows = (
        [{"path": name, "features": values.tolist()} for name, values in zip(names, features, strict=True)]
        for names, features in parts
    )
    return write_table(path, rows, empty=("path", "features"))


def _write_npy(path: Path, parts: Parts) -> int:
    """Write rows behind a header that is filled in once their number is known; its length does not depend on it."""
    count, width = 0, None
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for _, features in parts:
            if width is None:
                width = features.shape[1]
                file.write(_header(0, width))
            file.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
            count += len(features)
        if width is None:
            raise RequestError("there are no pictures to embed")
        file.seek(0)
        file.write(_header(count, width))
    return count


def _header(count: int, width: int) -> bytes:
    """Return NumPy's header of float32 [count, width]; NumPy leaves room in it for a growing first axis."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (count, width)})
    return buffer.getvalue()
