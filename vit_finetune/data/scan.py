"""Which picture files lie below a folder, in natural order. Names only: no pixels, no labels.

Hidden entries and files that are not pictures are left out and counted; links are followed, but
never into a folder that holds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.data.images import IMAGE_SUFFIXES

NaturalKey = tuple[tuple[tuple[str | int, ...], ...], str]
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True)
class Scan:
    """What lies below one folder.

    Attributes:
        names: picture files, relative to the folder with "/", in natural order, a folder's own before those below.
        empty: folders below it that hold neither pictures nor folders, in natural order.
        num_hidden: entries that were left out because their name begins with a dot.
        num_other: files that were left out because their ending is not a picture's.
        num_loops: links that were left out because they lead back to a folder that holds them.
        unlisted: folders whose names could not be read, with the reason; only where that is no error.
    """

    names: tuple[str, ...]
    empty: tuple[str, ...]
    num_hidden: int = 0
    num_other: int = 0
    num_loops: int = 0
    unlisted: tuple[tuple[str, str], ...] = ()

    def notes(self, root: Path) -> tuple[str, ...]:
        """Return one line for people about what was left out below `root`; none if nothing was."""
        counts = (
            (self.num_other, "not pictures"),
            (self.num_hidden, "hidden"),
            (self.num_loops, "links back to a folder above"),
        )
        parts = [f"{count:,} {what}" for count, what in counts if count]
        return (f"{root}: left out {', '.join(parts)}",) if parts else ()


def natural_key(name: str) -> NaturalKey:
    """Return a sort key that orders numbers by value, letters without case, and folder by folder.

    Args:
        name: a name or a path with "/".

    Returns:
        A key: `["10", "9", "a/2", "A/10"]` sorts as 9, 10, a/2, A/10; ties go by the plain text.
    """
    parts = tuple(
        tuple(int(piece) if piece.isdigit() and piece.isascii() else piece.casefold() for piece in _DIGITS.split(part))
        for part in name.split("/")
    )
    return parts, name


def scan_folder(root: Path, *, strict: bool = True) -> Scan:
    """List the picture files below a folder, folder by folder, in natural order.

    Args:
        root: an existing folder.
        strict: a folder below it that cannot be listed is an error; else it is told in `unlisted`.

    Raises:
        RequestError: a folder cannot be listed.
    """
    names: list[str] = []
    empty: list[str] = []
    unlisted: list[tuple[str, str]] = []
    num_hidden = num_other = num_loops = 0
    for visit in _walk(root):
        if visit.error is not None:
            if strict:
                raise _unlisted(root / visit.relative, visit.error) from visit.error
            unlisted.append((visit.relative, str(visit.error.strerror)))
            continue
        names += visit.pictures
        num_hidden += visit.num_hidden
        num_other += visit.num_other
        num_loops += visit.num_loops
        if visit.relative and not visit.pictures and not visit.num_folders:
            empty.append(visit.relative)
    return Scan(tuple(names), tuple(empty), num_hidden, num_other, num_loops, tuple(unlisted))


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the pictures that files and folders stand for, as `iter_images` yields them.

    Args:
        paths: files, which are taken whatever their ending, and folders.

    Raises:
        RequestError: a path does not exist, or a folder holds no picture.
    """
    return list(iter_images(paths))


def iter_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield the pictures that files and folders stand for; the names of one folder at a time are in memory.

    Args:
        paths: files, which are taken whatever their ending, and folders, recursively.

    Yields:
        Paths in the order of `paths`, inside a folder in natural order.

    Raises:
        RequestError: a path does not exist, or a folder holds no picture.
    """
    for path in map(Path, paths):
        if path.is_dir():
            is_empty = True
            for visit in _walk(path):
                if visit.error is not None:
                    raise _unlisted(path / visit.relative, visit.error) from visit.error
                for name in visit.pictures:
                    is_empty = False
                    yield path / name
            if is_empty:
                raise RequestError(f"no pictures below {path}; looked for files ending in {endings()}")
        elif path.exists():
            yield path
        else:
            raise RequestError(f"{path} does not exist; give picture files or folders")


@dataclass(frozen=True)
class _Visit:
    """What one folder holds: its pictures' names from the root, in natural order, and counts as in `Scan`."""

    relative: str
    pictures: tuple[str, ...] = ()
    num_folders: int = 0
    num_hidden: int = 0
    num_other: int = 0
    num_loops: int = 0
    error: OSError | None = None


def _walk(root: Path) -> Iterator[_Visit]:
    """Yield every folder from `root` down, in natural order, a folder before those below it."""
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while pending:
        relative, above = pending.pop()
        folder = root / relative
        above = above | {os.path.realpath(folder)}
        try:
            files, folders, hidden = _list(folder)
        except OSError as error:
            yield _Visit(relative, error=error)
            continue
        pictures = [name for name in files if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        inner = [name for name in folders if os.path.realpath(folder / name) not in above]
        prefix = f"{relative}/" if relative else ""
        pending += [(prefix + name, above) for name in sorted(inner, key=natural_key, reverse=True)]
        names = tuple(prefix + name for name in sorted(pictures, key=natural_key))
        yield _Visit(
            relative, names, len(inner), hidden, len(files) - len(pictures), num_loops=len(folders) - len(inner)
        )


def _unlisted(folder: Path, error: OSError) -> RequestError:
    return RequestError(f"cannot list the folder {folder}: {error.strerror}")


def endings() -> str:
    """Return the endings of picture files, for messages."""
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _list(folder: Path) -> tuple[list[str], list[str], int]:
    """Return the names of the visible files and folders in a folder, and how many entries are hidden.

    Hidden is what begins with a dot, as `._x.jpg` beside `x.jpg` in an archive from a Mac. A broken link is a file.
    """
    with os.scandir(folder) as entries:
        listed = [(entry.name, _is_folder(entry)) for entry in entries]
    visible = [(name, is_dir) for name, is_dir in listed if not name.startswith(".")]
    files = [name for name, is_dir in visible if not is_dir]
    folders = [name for name, is_dir in visible if is_dir]
    return files, folders, len(listed) - len(visible)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False
