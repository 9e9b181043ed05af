"""A file that lists pictures -> splits: CSV, TSV, JSON lines, parquet without pictures inside, a run's manifest.

One row is one picture: its path, which starts from the file's folder, its class or classes, and where the columns are
there its split, group and time. A run's `manifest.parquet` gives back exactly that run's splits, and every picture is
compared with the hash that stands in it. Tables that hold the pictures themselves are hub.py's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import listed
from vit_finetune.data.columns import LABEL_NAMES, PATH_NAMES, Columns, SplitNames, beside, existing, labels_of, only
from vit_finetune.data.image_set import FileStore
from vit_finetune.data.parts import Part, Parts

TEXT_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
_DELIMITERS = (",", ";", "\t")
_MAX_SHOWN = 5


@dataclass(frozen=True)
class _Table:
    """A file, read.

    Attributes:
        path: of the file.
        columns: name to cells.
        lines: of each row the line it ends on; None where the file has no lines.
        metadata: of a run's manifest, what it says about itself; else empty.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def where(self, row: int) -> str:
        """Return what a row is called: its line, or its number from 0."""
        return f"{self.path} row {row}" if self.lines is None else f"{self.path} line {self.lines[row]}"


def lists_pictures(source: str | Path) -> bool:
    """Tell whether a source is a file that this module reads."""
    path = Path(source).expanduser()
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return path.suffix.lower() in TEXT_SUFFIXES
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return True  # reading it says what is wrong with it
    return not any(_holds_bytes(column.type) for column in schema)


def _holds_bytes(kind: Any) -> bool:
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    return bool(pa.types.is_binary(inner) or pa.types.is_large_binary(inner))


def read_table_file(path: Path, *, root: Path | None, columns: Columns, splits: SplitNames) -> Parts:
    """Read a file that lists pictures.

    Args:
        path: of the file.
        root: where relative paths start; None: the file's folder, or what a run's manifest says.
        columns: what the columns are called.
        splits: which splits are wanted; where no column tells the split, all rows are train.

    Raises:
        RequestError: the file or a row is not what it must be, or a picture is not there; rows and columns are named.
    """
    table, chosen, root = _open(path, root, columns)
    rows = _rows_by_split(table, chosen.split) or {splits.train: np.arange(len(table))}
    wanted = splits.find(str(path), rows)
    unread = [name for name in rows if name not in wanted]
    notes = [f"{path}: splits as column {chosen.split!r} says"] if chosen.split else []
    notes += [f"{path}: not read: {listed(unread)}"] if unread else []
    parts = _parts(table, chosen, root, {name: rows[name] for name in wanted if name is not None}, splits.train)
    train, val, test = (None if name is None else parts[name] for name in wanted)
    assert train is not None  # `find` refuses a file without it
    class_names = tuple(json.loads(table.metadata.get("class_names", "[]"))) or None
    return Parts(train, val, test, tuple(notes), class_names, is_settled=_is_run(table))


def read_list(path: Path, split: str | None) -> Part:
    """Read the pictures of a file that lists them, to score them.

    Args:
        path: of the file; its columns have usual names.
        split: which rows; None takes those of test, else of val, and where no column tells the split all of them.

    Raises:
        RequestError: as `read_table_file`, or there are no such rows.
    """
    table, columns, root = _open(path, None, Columns())
    rows = _rows_by_split(table, columns.split) or {"all": np.arange(len(table))}
    name = split or next((each for each in ("test", "val", "all") if each in rows), "test")
    if name not in rows:
        raise RequestError(f"{path} has no split {name!r}; it has {', '.join(rows)}")
    return _parts(table, columns, root, {name: rows[name]})[name]


def _is_run(table: _Table) -> bool:
    return "manifest_hash" in table.metadata


def _open(path: Path, root: Path | None, columns: Columns) -> tuple[_Table, Columns, Path]:
    """Return a file, the names of its columns, and where its paths start."""
    table = _read(path)
    if not len(table):
        raise RequestError(f"{path} lists no pictures")
    names = list(table.columns)
    if _is_run(table):
        if root is None and "root" not in table.metadata:
            raise RequestError(
                f"{path} is of pictures in a table, in shards or in memory, which it does not tell how to find; open "
                "those with the run's data section and seed, and they are split as they were"
            )
        columns = replace(columns, image="name", label="class_name", split="split", label_separator=None)
    chosen = replace(
        columns,
        image=_find(path, names, columns.image, PATH_NAMES, what="paths", option="image_column"),
        label=_find(path, names, columns.label, LABEL_NAMES, what="classes", option="label_column"),
        split=existing(str(path), columns.split, names) if columns.split else "split" if "split" in names else None,
    )
    return table, chosen, Path(table.metadata.get("root", path.parent)) if root is None else root


def _parts(
    table: _Table, columns: Columns, root: Path, rows: Mapping[str, NDArray[np.int64]], train: str = "train"
) -> dict[str, Part]:
    """Return the pictures of some splits."""
    assert columns.image is not None
    _check_paths(table, columns.image, root, [row for members in rows.values() for row in members.tolist()])
    return {name: _part(table, columns.of_split(name, train), root, members) for name, members in rows.items()}


def _find(path: Path, names: Sequence[str], asked: str | None, usual: Sequence[str], *, what: str, option: str) -> str:
    if asked is not None:
        return existing(str(path), asked, names)
    return only(str(path), [name for name in names if name in usual], names, what=what, option=option)


def _part(table: _Table, columns: Columns, root: Path, rows: NDArray[np.int64]) -> Part:
    """Return the pictures of some rows."""

    def cells(column: str) -> list[Any]:
        values = table.columns[existing(str(table.path), column, list(table.columns))]
        return [values[row] for row in rows.tolist()]

    def where(row: int) -> str:
        return table.where(int(rows[row]))

    assert columns.image is not None
    assert columns.label is not None
    digests = tuple(cells("sha256")) if _is_run(table) else None
    return Part(
        FileStore(root, tuple(cells(columns.image)), digests),
        labels_of(cells(columns.label), where, columns.label, separator=columns.label_separator),
        **beside(columns, cells, where),
    )


def _rows_by_split(table: _Table, column: str | None) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each split, splits in the order in which they come; nothing where no column tells."""
    if column is None:
        return {}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table.columns[column]):
        if not isinstance(name, str) or not name:
            raise RequestError(f"{table.where(row)} has no split in column {column!r}; write one, such as train")
        rows.setdefault(name, []).append(row)
    return {name: np.array(members, dtype=np.int64) for name, members in rows.items()}


def _check_paths(table: _Table, column: str, root: Path, rows: Sequence[int]) -> None:
    """Refuse rows without a path, paths listed twice, and pictures that are not there."""
    first: dict[str, int] = {}
    missing: list[str] = []
    for row in rows:
        name = table.columns[column][row]
        if not isinstance(name, str) or not name:
            raise RequestError(f"{table.where(row)} has no path in column {column!r}; write one or remove the row")
        if name in first:
            raise RequestError(
                f"{table.where(row)} lists {name} again, which {table.where(first[name])} has; list a picture once, "
                "with all its classes (data.label_separator)"
            )
        first[name] = row
        if not (root / name).is_file():
            missing.append(f"{table.where(row)}, column {column!r}: no file {root / name}")
    if missing:
        more = f"; and {len(missing) - _MAX_SHOWN:,} more" if len(missing) > _MAX_SHOWN else ""
        told = f"{'; '.join(missing[:_MAX_SHOWN])}{more}"
        raise RequestError(f"{told}; paths start from {root}, or from data.root where that is given")


def _read(path: Path) -> _Table:
    """Read a file as its ending says."""
    if not path.is_file():
        raise RequestError(
            f"{path} {'is a folder' if path.exists() else 'does not exist'}; give a file with one row a picture"
        )
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _read_parquet(path)
        return _read_json_lines(path) if suffix in {".jsonl", ".ndjson"} else _read_csv(path, suffix)
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def _read_parquet(path: Path) -> _Table:
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise RequestError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    told = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return _Table(path, columns, metadata=told if "manifest_hash" in told else {})


def _read_csv(path: Path, suffix: str) -> _Table:
    """Read lines of cells under a header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = "\t" if suffix == ".tsv" else max(_DELIMITERS, key=header.count)
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            names = next(reader, [])
            rows = [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise RequestError(f"{path} line {reader.line_num}: {error}") from error
    if len(set(names)) != len(names) or not all(names) or not names:
        raise RequestError(f"{path} line 1 must name every column once; it says {listed(names)}")
    for line, cells in rows:
        if len(cells) != len(names):
            raise RequestError(
                f"{path} line {line} has {len(cells)} cells for {len(names)} columns ({', '.join(names)}); put cells "
                f"that contain {delimiter!r} in double quotes"
            )
    columns = {name: [cells[place] for _, cells in rows] for place, name in enumerate(names)}
    return _Table(path, columns, [line for line, _ in rows])


def _read_json_lines(path: Path) -> _Table:
    """Read one JSON object a line; a key that a line lacks is an empty cell."""
    rows = list(_json_rows(path))
    names = dict.fromkeys(name for _, row in rows for name in row)
    return _Table(path, {name: [row.get(name) for _, row in rows] for name in names}, [line for line, _ in rows])


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise RequestError(f"{path} line {line} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise RequestError(
                    f'{path} line {line} is no JSON object; write one like {{"path": ..., "label": ...}}'
                )
            yield line, row
