"""Tables written as they come: CSV, parquet or JSON lines, any number of rows in bounded memory.

The table appears whole at its place or not at all.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_file

Rows = list[dict[str, Any]]
_GROUP = 8192  # rows of a parquet row group: the most that wait in memory


def check_table_place(path: Path, what: str, suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a place or an ending that a table cannot be written to, before the work is done.

    Args:
        path: the file to come.
        what: is written, for the message: "predictions", "features".
        suffixes: the endings that are allowed.
        overwrite: an older file may be replaced.

    Raises:
        RequestError: another ending, or the file exists.
    """
    if path.suffix not in suffixes:
        raise RequestError(f"{path} ends in {path.suffix or 'nothing'}; {what} are written as {', '.join(suffixes)}")
    if path.exists() and not overwrite:
        raise RequestError(f"{path} exists already; give another name or --overwrite")


def write_table(path: Path, parts: Iterable[Rows], *, empty: Sequence[str]) -> int:
    """Write rows as they come, each part before the next is asked for.

    Args:
        path: ends in one of `TABLE_SUFFIXES`; an older file is replaced.
        parts: rows with the same keys in all.
        empty: the columns of a table without rows.

    Returns:
        The number of rows.
    """
    count = 0
    with atomic_file(path) as temporary, ExitStack() as stack:
        write = _WRITERS[path.suffix](temporary, stack, empty)
        for rows in parts:
            write(rows)
            count += len(rows)
    return count


def _csv(path: Path, stack: ExitStack, empty: Sequence[str]) -> Callable[[Rows], None]:
    file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
    writers: list[csv.DictWriter[str]] = []

    def head(names: Sequence[str]) -> None:
        if not writers:
            writers.append(csv.DictWriter(file, fieldnames=names))
            writers[0].writeheader()

    def write(rows: Rows) -> None:
        if rows:
            head(list(rows[0]))
            writers[0].writerows({key: _as_text(value) for key, value in row.items()} for row in rows)

    stack.callback(head, empty)
    return write


def _as_text(value: Any) -> Any:
    """Return lists as JSON, which a class name with any separator in it survives."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _jsonl(path: Path, stack: ExitStack, empty: Sequence[str]) -> Callable[[Rows], None]:
    del empty  # a file of no lines says it
    file = stack.enter_context(path.open("w", encoding="utf-8"))
    return lambda rows: file.writelines(json.dumps(row) + "\n" for row in rows)


class _Parquet:
    """Rows gathered into groups: thousands of tiny groups would make the file's index larger than the file."""

    def __init__(self, path: Path, empty: Sequence[str]) -> None:
        self.path, self.empty = path, empty
        self.waiting: Rows = []
        self.writer: parquet.ParquetWriter | None = None

    def write(self, rows: Rows) -> None:
        """Take rows, and write as soon as a group is full."""
        self.waiting += rows
        while len(self.waiting) >= _GROUP:
            self._flush(self.waiting[:_GROUP])
            del self.waiting[:_GROUP]

    def close(self) -> None:
        """Write what is left."""
        if self.waiting or self.writer is None:
            self._flush(self.waiting)
        if self.writer is not None:
            self.writer.close()

    def _flush(self, rows: Rows) -> None:
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.path, _schema(rows[0] if rows else dict.fromkeys(self.empty, "")))
        self.writer.write_table(pa.Table.from_pylist(rows, schema=self.writer.schema))


def _schema(row: Mapping[str, Any]) -> pa.Schema:
    """Return the types of a row's columns; None is a text that is missing."""
    return pa.schema([(name, _type(value)) for name, value in row.items()])


def _type(value: Any) -> pa.DataType:
    """Return the type of a column by one of its values."""
    if isinstance(value, list):
        return pa.list_(pa.float32() if value and isinstance(value[0], float) else pa.string())
    if isinstance(value, bool):
        return pa.bool_()
    return pa.float64() if isinstance(value, float) else pa.string()


def _parquet(path: Path, stack: ExitStack, empty: Sequence[str]) -> Callable[[Rows], None]:
    table = _Parquet(path, empty)
    stack.callback(table.close)
    return table.write


_WRITERS: dict[str, Callable[[Path, ExitStack, Sequence[str]], Callable[[Rows], None]]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".jsonl": _jsonl,
}
TABLE_SUFFIXES = tuple(_WRITERS)
