"""WebDataset shards (tar files) -> stores with random access.

The headers of a shard are read once, which tells where each file lies; from then on a picture is one seek and one
read, so order, resume and several processes work as with files. A sample is what shares a name up to the first dot:
`0001.jpg` with `0001.cls` (the class as text) or `0001.json` (an object with the class; group and time if asked for).

Source: the WebDataset format, https://github.com/webdataset/webdataset (tariterators.py: `base_plus_ext`).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import listed
from vit_finetune.data.columns import LABEL_NAMES, Columns, SplitNames, beside, existing, labels_of, only
from vit_finetune.data.images import IMAGE_SUFFIXES
from vit_finetune.data.parts import Part, Parts
from vit_finetune.data.scan import natural_key

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_Files = dict[str, tuple[int, int]]  # extension -> where its bytes begin, and how many there are


@dataclass(frozen=True, eq=False)
class ShardStore:
    """Pictures inside tar files.

    Attributes:
        root: the folder that the shards' names start from.
        shards: the tar files.
        shard: [N] which of them holds the picture.
        offset: [N] where its bytes begin.
        size: [N] how many there are.
        members: [N] what the picture is called in its shard.
    """

    root: Path
    shards: tuple[str, ...]
    shard: NDArray[np.int64] = field(repr=False)
    offset: NDArray[np.int64] = field(repr=False)
    size: NDArray[np.int64] = field(repr=False)
    members: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.members)

    def name(self, index: int) -> str:
        """Return the path of the shard and the picture's name in it."""
        return f"{self.root / self.shards[self.shard[index]]}:{self.members[index]}"

    def key(self, index: int) -> str:
        """Return the shard's name below the root and the picture's name in it."""
        return f"{self.shards[self.shard[index]]}:{self.members[index]}"

    def read(self, index: int) -> bytes:
        """Return the bytes of the picture's file.

        Raises:
            RequestError: the shard is gone or shorter than it was.
        """
        return _bytes_at(self.root / self.shards[self.shard[index]], int(self.offset[index]), int(self.size[index]))

    def take(self, indices: NDArray[np.int64]) -> ShardStore:
        """Return the store of these pictures alone, in this order."""
        members = tuple(self.members[index] for index in indices)
        return ShardStore(
            self.root, self.shards, self.shard[indices], self.offset[indices], self.size[indices], members
        )


@dataclass(frozen=True)
class _Sample:
    """What a shard holds under one name."""

    shard: int
    path: Path
    key: str
    files: _Files

    def __str__(self) -> str:
        return f"{self.path}:{self.key}"

    def read(self, extension: str) -> bytes:
        """Return the bytes of a file of the sample."""
        if extension not in self.files:
            raise RequestError(f"{self} has no file of kind {extension!r}; it has {listed(sorted(self.files))}")
        return _bytes_at(self.path, *self.files[extension])


def names_shards(source: str | Path) -> bool:
    """Tell whether a source is a tar file, a pattern of tar files, or a folder of them."""
    path = Path(source).expanduser()
    return path.name.endswith((".tar", ".tar.gz", ".tgz")) or (path.is_dir() and any(path.rglob("*.tar")))


def read_shards(source: str, *, splits: SplitNames, columns: Columns) -> Parts:
    """Open WebDataset shards.

    Args:
        source: a tar file, a folder of them, or a pattern with `*` or `{000..009}`. A shard belongs to the split that
            its folder below the source is called, or the last word of its name (`birds-train-0001.tar`); where no
            shard is of `splits.train`, all are.
        splits: which are wanted.
        columns: `image` is an extension (`jpg`), `label` an extension (`cls`) or a key of the JSON, `group` and `time`
            are keys of the JSON.

    Raises:
        RequestError: a shard cannot be read, or a sample lacks its picture or class.
    """
    if columns.split is not None:
        raise RequestError("data.split_column is of tables; the names of shards tell their split")
    root, shards, by_split = _find(source, splits.train)
    wanted = splits.find(source, by_split)
    parts = {
        name: _part(source, root, shards, by_split[name], columns.of_split(name, splits.train))
        for name in wanted
        if name is not None
    }
    train, val, test = (None if name is None else parts[name] for name in wanted)
    assert train is not None  # `find` refuses shards without it
    unread = [name for name in by_split if name not in wanted]
    notes = (f"{source}: not read: {listed(unread)}",) if unread else ()
    return Parts(train, val, test, notes)


def _find(source: str, train: str) -> tuple[Path, tuple[str, ...], dict[str, list[int]]]:
    """Return the folder of the shards, their names below it in natural order, and which of them each split has."""
    path = Path(source).expanduser()
    root = path if path.is_dir() else Path(re.split(r"[*?{\[]", str(path))[0].rpartition("/")[0] or ".")
    patterns = ["**/*.tar"] if path.is_dir() else list(_expand(path.relative_to(root).as_posix()))
    names = sorted(
        {found.relative_to(root).as_posix() for each in patterns for found in root.glob(each)}, key=natural_key
    )
    if not names:
        raise RequestError(f"{source}: there are no such tar files; give a tar file, a folder of them, or a pattern")
    if packed := [name for name in names if not name.endswith(".tar")]:
        raise RequestError(
            f"{root / packed[0]} is compressed, so its pictures cannot be read one by one; unpack it to .tar"
        )
    by_split: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        words = [word for word in re.split(r"[-_.]", base.removesuffix(".tar")) if word.isalpha() and word != "of"]
        by_split.setdefault(folder.partition("/")[0] or (words or [base])[-1], []).append(number)
    return root, tuple(names), by_split if train in by_split else {train: list(range(len(names)))}


def _expand(pattern: str) -> Iterator[str]:
    """Yield the patterns that `{000..009}` stands for."""
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(pattern[: match.start()] + str(number).zfill(len(first)) + pattern[match.end() :])


def _part(source: str, root: Path, shards: tuple[str, ...], numbers: list[int], columns: Columns) -> Part:
    """Return the samples of some shards."""
    samples = [sample for number in numbers for sample in _samples(root / shards[number], number)]
    if not samples:
        raise RequestError(f"{source}: these shards are empty")
    kinds = [_picture(sample, columns.image) for sample in samples]
    places = np.array([sample.files[kind] for sample, kind in zip(samples, kinds, strict=True)], dtype=np.int64)
    store = ShardStore(
        root,
        shards,
        np.array([sample.shard for sample in samples], dtype=np.int64),
        places[:, 0],
        places[:, 1],
        tuple(f"{sample.key}.{kind}" for sample, kind in zip(samples, kinds, strict=True)),
    )
    files = samples[0].files
    objects = [_object(sample) for sample in samples] if "json" in files else []
    known = sorted({*files, *(objects[0] if objects else ())})
    label = columns.label or ("cls" if "cls" in files else None)
    if label is None:
        usual = [name for name in known if name in LABEL_NAMES]
        label = only(source, usual, known, what="classes", option="label_column")

    def cells(name: str) -> list[Any]:
        if existing(source, name, known) in files and name != "json":
            return [sample.read(name).decode(errors="replace").strip() for sample in samples]
        return [values.get(name) for values in objects]

    return Part(
        store,
        labels_of(cells(label), store.name, label, separator=columns.label_separator),
        **beside(columns, cells, store.name),
    )


def _samples(path: Path, number: int) -> Iterator[_Sample]:
    """Yield the samples of a shard in its order."""
    seen: set[str] = set()
    current: _Sample | None = None
    for name, place in _members(path):
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = folder + slash + stem
        if current is None or key != current.key:
            if current is not None:
                yield current
            if key in seen:
                raise RequestError(f"{path}:{key} comes twice; the files of a sample lie one after the other")
            seen.add(key)
            current = _Sample(number, path, key, {})
        current.files[extension.lower()] = place
    if current is not None:
        yield current


def _members(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the files in a shard, hidden ones aside, with their place."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.name.rpartition("/")[2].startswith("."):
                    yield member.name, (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header that it has read
    except (tarfile.TarError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot read the shard {path}: {reason}; write it again") from error


def _picture(sample: _Sample, asked: str | None) -> str:
    """Return the extension of a sample's picture."""
    if asked is None:
        kinds = [kind for kind in sample.files if f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    else:
        kinds = [kind for kind in sample.files if kind == asked.lower()]
    if len(kinds) != 1:
        which = f"several pictures ({', '.join(kinds)}); choose by data.image_column" if kinds else "no picture"
        raise RequestError(f"{sample} has {which}; it has {listed(sorted(sample.files))}")
    return kinds[0]


def _object(sample: _Sample) -> dict[str, Any]:
    """Return the JSON object of a sample."""
    try:
        found = json.loads(sample.read("json"))
    except ValueError as error:
        raise RequestError(f"{sample}.json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{sample}.json is no JSON object")
    return found


def _bytes_at(path: Path, offset: int, size: int) -> bytes:
    """Return a stretch of a file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise RequestError(f"cannot read the shard {path}: {error.strerror}; bring it back") from error
    if len(data) != size:
        raise RequestError(f"the shard {path} ends too early; write it again")
    return data
