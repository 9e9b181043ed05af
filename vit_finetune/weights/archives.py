"""Members of zip archives as mapped memory: what `.npz` files and TorchScript archives have in common.

An archive says how large each member is before it is read, and is believed only as far as the file itself is large:
stored members are mapped where they lie, and packed ones are read only if they unpack to a sensible size.

Source: the zip format (APPNOTE 6.3.10), section 4.3.7 for the local header.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError

MAX_MEMBERS = 100_000
_MAX_RATIO = 20  # how many times the file's size all packed members may have; weights pack to 0.9 of theirs
_FREE_SIZE = 50_000_000  # bytes that they may unpack to in any case; heads full of zeros pack well
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")

Bytes = NDArray[np.uint8]


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever is wrong with it, then or while it is read, is one kind of error.

    Raises:
        RequestError: it is no zip archive, or damaged, or has two members of one name, or too many members, or packed
            ones that unpack to far more than weights would.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_names(archive.namelist(), path)
            _check_sizes(archive.infolist(), path)
            yield archive
    except RequestError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    except (
        RuntimeError,
        struct.error,
        KeyError,
        IndexError,
        OverflowError,
    ) as error:  # encrypted, or cut in its headers
        raise _damaged(path, error) from error


def member_bytes(archive: zipfile.ZipFile, name: str, path: Path) -> Bytes:
    """Return the bytes of a member: mapped from the file if it is stored, else unpacked.

    Args:
        archive: the archive, open.
        name: the member.
        path: the file that it is in.

    Raises:
        RequestError: the member is damaged, or reaches beyond the file.
    """
    info = archive.getinfo(name)
    size = path.stat().st_size
    if info.compress_type != zipfile.ZIP_STORED:
        try:
            return np.frombuffer(bytearray(archive.read(info)), dtype=np.uint8)
        except Exception as error:  # the unpackers of bz2, lzma and deflate have no error in common
            raise _damaged(path, error) from error
    if not info.file_size:
        return np.empty(0, dtype=np.uint8)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
    if header[0] != b"PK\x03\x04" or start + info.file_size > size or info.file_size != info.compress_size:
        raise RequestError(f"{path} is damaged or cut off at {name}; copy or download it again")
    # Private to this process: writing to a tensor changes no file.
    return np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(info.file_size,))


def _check_names(names: list[str], path: Path) -> None:
    if len(names) > MAX_MEMBERS:
        raise RequestError(f"{path} has {len(names)} members; weight files have at most {MAX_MEMBERS}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{path} has {twice} more than once; which one counts can't be told")


def _check_sizes(members: list[zipfile.ZipInfo], path: Path) -> None:
    packed = {info.filename: info.file_size for info in members if info.compress_type != zipfile.ZIP_STORED}
    total, size = sum(packed.values()), path.stat().st_size
    if total > max(_FREE_SIZE, _MAX_RATIO * size):
        largest = max(packed, key=packed.__getitem__)
        raise RequestError(
            f"{path}: {largest} and other packed members would unpack to {total:,} bytes from a file of {size:,}, as "
            "no weights do"
        )


def _damaged(path: Path, error: Exception) -> RequestError:
    return RequestError(f"{path} is damaged or cut off ({error}); copy or download it again")
