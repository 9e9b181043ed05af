"""Parquet files that are read a row group at a time, from the Hub or a disk: for sets larger than the disk here.

Only the columns of classes are read whole. Pictures stay numbered, so that order, resume, held-out splits and several
processes work as with every other source; `order.block_order` visits row groups so that few are needed at a time. A row
group that was fetched is kept in a folder that all processes share and whose size is limited.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError, VitFinetuneError, WorkError
from vit_finetune.common.files import atomic_file
from vit_finetune.common.suggest import listed
from vit_finetune.data.columns import Columns, SplitNames, beside, existing
from vit_finetune.data.hub import class_names, declared_names, image_column, label_column, opened
from vit_finetune.data.order import BLOCKS_TOGETHER
from vit_finetune.data.parts import Part, Parts

_MAX_BYTES_KEPT = 8 * 10**9  # holds the row groups of several windows, which are usually below 500 MB each
_NUM_LOCKS = 64  # files, so that processes fetch different row groups at the same time and the same one once


@dataclass(frozen=True)
class _File:
    """A parquet file: its address, and what changes when its content does."""

    url: str
    stamp: str


@dataclass(frozen=True, eq=False)
class StreamStore:
    """Pictures in parquet files that are fetched a row group at a time.

    Attributes:
        files: of the split.
        column: of the pictures.
        source: what the data set is called, for people.
        split: the split that the rows belong to.
        places: [B, 2] the file of each row group and its number in it.
        starts: [B + 1] the first row of each row group, and how many rows there are.
        rows: [N] which rows of the split.
        version: changes with any file; stands for the hashes of pictures that nobody has fetched.
    """

    files: tuple[_File, ...] = field(repr=False)
    column: str
    source: str
    split: str
    places: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    version: str

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return the data set, split and row of the picture."""
        return f"{self.source}:{self.key(index)}"

    def key(self, index: int) -> str:
        """Return the split and row of the picture."""
        return f"{self.split}#{self.rows[index]}"

    def blocks(self) -> NDArray[np.int64]:
        """Return the row group of each picture, [N]."""
        return np.searchsorted(self.starts, self.rows, side="right") - 1

    def read(self, index: int) -> bytes:
        """Return the bytes of the picture's file.

        Raises:
            RequestError: the row is empty.
            WorkError: the row group cannot be fetched.
        """
        row = int(self.rows[index])
        block = int(np.searchsorted(self.starts, row, side="right")) - 1
        file, group = self.places[block]
        cell = _block(self.files[file], int(group), self.column)[row - int(self.starts[block])].as_py()
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if data is None:
            raise RequestError(f"{self.name(index)} has no picture inside; remove the row, or do not stream")
        return bytes(data)

    def take(self, indices: NDArray[np.int64]) -> StreamStore:
        """Return the store of these pictures alone, in this order."""
        return replace(self, rows=self.rows[indices])


def read_stream(source: str, *, splits: SplitNames, columns: Columns) -> Parts:
    """Open parquet files to be read a row group at a time.

    Args:
        source: a Hub data set whose files are parquet, or a parquet file or a folder of them.
        splits: which are wanted.
        columns: what the columns are called.

    Raises:
        RequestError: the source is not parquet, or a split, column or class is not what it must be.
        WorkError: a file cannot be fetched.
    """
    if columns.split is not None:
        raise RequestError("data.split_column is not read while streaming; the files tell their split")
    by_split = _files(source)
    wanted = splits.find(source, by_split)
    declared: list[str] | None = None
    parts: list[Part | None] = []
    for name in wanted:
        if name is None:
            parts.append(None)
            continue
        part, names = _part(source, name, by_split[name], columns.of_split(name, splits.train))
        parts.append(part)
        declared = names if name == splits.train else declared
    train, val, test = parts
    assert train is not None  # `find` refuses a source without it
    notes = [f"{source}: streamed; up to {_MAX_BYTES_KEPT / 1e9:g} GB of row groups are kept in {_folder()}"]
    unread = [name for name in by_split if name not in wanted]
    if unread:
        notes.append(f"{source}: not read: {listed(unread)}")
    return Parts(train, val, test, tuple(notes), None if declared is None else tuple(declared))


def _files(source: str) -> dict[str, tuple[_File, ...]]:
    """Return the parquet files of each split."""
    import datasets
    import fsspec

    builder = opened(source, datasets.load_dataset_builder)
    kind = getattr(builder, "name", "a saved data set")  # which is opened at once
    if kind != "parquet":
        raise RequestError(f"{source} is {kind}, and only parquet is streamed; set data.streaming false")
    found: dict[str, tuple[_File, ...]] = {}
    for split, urls in builder.config.data_files.items():
        files = []
        for url in map(str, urls):
            with _fetching(url):
                system, path = fsspec.core.url_to_fs(url)
                told = system.info(path)
            files.append(_File(url, f"{told.get('size')} {told.get('blob_id') or told.get('mtime')}"))
        found[str(split)] = tuple(files)
    return found


def _part(source: str, split: str, files: Sequence[_File], columns: Columns) -> tuple[Part, list[str] | None]:
    """Return the pictures of a split and the class names that it declares; pictures are not fetched."""
    import datasets

    places: list[tuple[int, int]] = []
    sizes: list[int] = []
    tables: list[Any] = []
    image = label = ""
    for number, file in enumerate(files):
        with _parquet(file) as parquet:
            if not tables:
                features = datasets.Features.from_arrow_schema(parquet.schema_arrow)
                like = SimpleNamespace(features=features, column_names=list(features))
                image, label = image_column(source, like, columns.image), label_column(source, like, columns.label)
                light = [
                    existing(source, name, list(features))
                    for name in (columns.group, columns.time, columns.weight)
                    if name
                ]
            tables.append(parquet.read(columns=list(dict.fromkeys([label, *light]))))
            for group in range(parquet.metadata.num_row_groups):
                places.append((number, group))
                sizes.append(parquet.metadata.row_group(group).num_rows)
    table = datasets.Dataset(pa.concat_tables(tables))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    store = StreamStore(
        files=tuple(files),
        column=image,
        source=source,
        split=split,
        places=np.array(places, dtype=np.int64),
        starts=starts,
        rows=np.arange(starts[-1]),
        version=hashlib.sha256("\n".join(f"{file.url} {file.stamp}" for file in files).encode()).hexdigest(),
    )
    part = Part(
        store,
        class_names(store.name, table, label, columns.label_separator),
        **beside(columns, table.__getitem__, store.name),
    )
    return part, declared_names(table.features[label])


@lru_cache(maxsize=BLOCKS_TOGETHER + 1)
def _block(file: _File, group: int, column: str) -> Any:
    """Return the cells of a row group: mapped from the folder, or fetched into it first."""
    name = hashlib.sha256(f"{file.url}\n{file.stamp}\n{group}\n{column}".encode()).hexdigest()
    path = _folder() / f"{name}.arrow"
    try:
        return _mapped(path)
    except FileNotFoundError:
        return _fetched(file, group, column, path)


def _fetched(file: _File, group: int, column: str, path: Path) -> Any:
    """Return the cells of a row group that nobody has fetched yet, or that another process is fetching."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f"{int(path.stem, 16) % _NUM_LOCKS}.lock")):
        with suppress(FileNotFoundError):  # another process was first
            return _mapped(path)
        with _parquet(file) as parquet:
            table = parquet.read_row_group(group, columns=[column])
        with atomic_file(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
            writer.write_table(table)
        cells = _mapped(path)
        _trim(path)
        return cells


def _mapped(path: Path) -> Any:
    cells = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
    with suppress(FileNotFoundError):  # just removed, and readable all the same
        os.utime(path)  # it was used last
    return cells


def _trim(newest: Path) -> None:
    """Remove what was used longest ago; a file that some process has mapped stays readable for it."""
    kept = 0
    stats = {path: path.stat() for path in newest.parent.glob("*.arrow")}
    for path in sorted(stats, key=lambda each: stats[each].st_mtime, reverse=True):
        kept += stats[path].st_size
        if kept > _MAX_BYTES_KEPT and path != newest:
            path.unlink(missing_ok=True)


def _folder() -> Path:
    """Return where row groups are kept: in the cache of `datasets`, which its users place where there is room."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "vit_finetune_streams"


@contextmanager
def _parquet(file: _File) -> Iterator[Any]:
    """Open a parquet file wherever it is; only what is asked of it is fetched."""
    with _bytes(file) as handle:
        yield pq.ParquetFile(handle, metadata=_metadata(file), pre_buffer=True)


@lru_cache(maxsize=1024)
def _metadata(file: _File) -> Any:
    """Return the footer of a parquet file, which says where its row groups are."""
    with _bytes(file) as handle:
        return pq.read_metadata(handle)


@contextmanager
def _bytes(file: _File) -> Iterator[Any]:
    import fsspec

    with _fetching(file.url):
        system, path = fsspec.core.url_to_fs(file.url)
        with system.open(path, cache_type="none") as handle:  # or megabytes are read ahead
            yield handle


@contextmanager
def _fetching(url: str) -> Iterator[None]:
    """Turn what a file system says into one line."""
    try:
        yield
    except VitFinetuneError:
        raise
    except Exception as error:  # each file system has its own kinds, those of its network library among them
        raise WorkError(f"cannot fetch {url}: {' '.join(str(error).split())}; try again, or bring the file") from error
