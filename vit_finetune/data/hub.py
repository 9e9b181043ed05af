"""Tables of pictures -> stores and class names, through Hugging Face `datasets`.

Reads Hub data sets, `save_to_disk` folders, parquet and arrow files or folders of them. `datasets`
opens the table; pictures stay encoded and are decoded by images.py like any file. Local image
folders are not read here: `datasets` guesses splits and classes from their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.data.columns import (
    LABEL_NAMES,
    Columns,
    SplitNames,
    Where,
    beside,
    check_once,
    existing,
    labels_of,
    only,
)
from vit_finetune.data.labels import Label
from vit_finetune.data.parts import Part, Parts

_TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True, eq=False)
class TableStore:
    """Pictures in a column of a table.

    Attributes:
        table: a `datasets.Dataset` of the picture column alone, undecoded.
        column: its name.
        source: what the table is called, for people.
        split: the split that the rows belong to.
        rows: [N] which rows of the table.
    """

    table: Any
    column: str
    source: str
    split: str
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return the table, split and row of the picture."""
        return f"{self.source}:{self.key(index)}"

    def key(self, index: int) -> str:
        """Return the split and row of the picture."""
        return f"{self.split}#{self.rows[index]}"

    def read(self, index: int) -> bytes:
        """Return the bytes of the picture's file, which the table holds or points to.

        Raises:
            RequestError: the row is empty or its file cannot be read.
        """
        value = self.table[int(self.rows[index])][self.column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise RequestError(f"{self.name(index)} has no picture; remove the row")
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise RequestError(f"cannot read {value['path']}, row {self.name(index)}: {error.strerror}") from error

    def take(self, indices: NDArray[np.int64]) -> TableStore:
        """Return the store of these pictures alone, in this order."""
        return TableStore(self.table, self.column, self.source, self.split, self.rows[indices])


def read_tables(source: str, *, splits: SplitNames, columns: Columns) -> Parts:
    """Open a table and read the classes of its splits.

    Args:
        source: a Hub data set, or a path to a saved set, a parquet or arrow file, or a folder of these.
        splits: which are wanted.
        columns: what the columns are called; `split` is for a table that has no splits of its own.

    Raises:
        RequestError: the source, a split or a column does not exist, or a row has no class.
        WorkError: the Hub cannot be reached.
    """
    import datasets

    loaded = opened(source, datasets.load_dataset)
    by_split = loaded if isinstance(loaded, Mapping) else {splits.train: loaded}  # one unsplit table: all is train
    if columns.split is not None:
        by_split = _split_by_column(source, by_split, columns.split)
    wanted = splits.find(source, by_split)
    train, val, test = (
        None if name is None else _part(source, name, by_split[name], columns.of_split(name, splits.train))
        for name in wanted
    )
    assert train is not None  # `find` refuses a table without it
    declared = declared_names(
        by_split[splits.train].features[label_column(source, by_split[splits.train], columns.label)]
    )
    unread = [name for name in by_split if name not in wanted]
    notes = (f"{source}: not read: {', '.join(unread)}",) if unread else ()
    return Parts(train, val, test, notes, None if declared is None else tuple(declared))


def _part(source: str, name: str, table: Any, columns: Columns) -> Part:
    """Return the pictures of a split."""
    image = image_column(source, table, columns.image)
    label = label_column(source, table, columns.label)
    store = _store(table, image, source, name)

    def cells(column: str) -> list[Any]:
        return list(_cells(table, existing(source, column, table.column_names)))

    return Part(
        store,
        class_names(store.name, table, label, columns.label_separator),
        **beside(columns, cells, store.name),
    )


def _split_by_column(source: str, by_split: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return the tables that a column of an unsplit table makes."""
    if len(by_split) != 1:
        raise RequestError(
            f"{source} has splits of its own ({', '.join(by_split)}); leave data.split_column {column!r} out"
        )
    (table,) = by_split.values()
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(_cells(table, existing(source, column, table.column_names))):
        if not isinstance(value, str) or not value:
            raise RequestError(f"{source} row {row} has {value!r} in column {column!r}; write a split, such as train")
        rows.setdefault(value, []).append(row)
    return {name: table.select(members) for name, members in rows.items()}


def _cells(table: Any, column: str) -> Any:
    """Return the cells of a column as plain values."""
    return table.with_format(None).select_columns([column])[column][:]


def opened(source: str, load: Callable[..., Any]) -> Any:
    """Return what a function of `datasets` makes of a source.

    Args:
        source: a Hub data set, or a path.
        load: `load_dataset` or `load_dataset_builder`.

    Raises:
        RequestError: the source does not exist, or is neither.
        WorkError: the Hub cannot be reached.
    """
    path = Path(source).expanduser()
    kind = _TABLE_SUFFIXES.get(path.suffix.lower())
    if path.is_dir():
        return _open_folder(path, load)
    if path.is_file() and kind:
        return load(kind, data_files=str(path))
    if path.exists():
        raise RequestError(
            f"{source} is neither a file that lists pictures (.csv, .tsv, .jsonl) nor parquet nor arrow nor a saved "
            "data set; for image folders set data.root"
        )
    if kind or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise RequestError(f"{source} does not exist; give a Hub data set (owner/name), a saved set, or a file")
    try:
        return load(source)
    except ConnectionError as error:
        raise WorkError(
            f"{source} is not a local path, and the Hub cannot be asked for a data set of that name: {error}; "
            "save it with `datasets` where there is network, bring the folder, and give its path"
        ) from error
    except (FileNotFoundError, ValueError) as error:  # DatasetNotFoundError is the first, a missing config the second
        raise RequestError(f"cannot open the Hub data set {source}: {' '.join(str(error).split())}") from error


def _open_folder(path: Path, load: Callable[..., Any]) -> Any:
    """Return what `datasets` makes of a folder: a saved set, or parquet or arrow files."""
    import datasets

    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    for suffix, kind in _TABLE_SUFFIXES.items():
        if any(path.rglob(f"*{suffix}")):
            return load(kind, data_dir=str(path))
    raise RequestError(
        f"{path} holds neither a saved data set nor parquet or arrow files; for image folders set data.root"
    )


def _store(table: Any, column: str, source: str, split: str) -> TableStore:
    """Return the pictures of a column, undecoded."""
    import datasets

    pictures = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return TableStore(pictures, column, source, split, np.arange(len(pictures), dtype=np.int64))


def image_column(source: str, table: Any, asked: str | None) -> str:
    """Return the column of pictures: the one asked for, or the only one that can be."""
    if asked is not None:
        return existing(source, asked, table.column_names)
    features = table.features
    likely = [name for name in features if type(features[name]).__name__ == "Image"]
    # parquet that was not written by `datasets` has the bytes without the word Image
    plain = [name for name in features if _is_bytes(features[name])]
    return only(source, likely or plain, table.column_names, what="pictures", option="image_column")


def _is_bytes(feature: Any) -> bool:
    """Tell whether a column holds bytes, or a struct of bytes and path, as tables of pictures do."""
    inner = feature["bytes"] if isinstance(feature, Mapping) and "bytes" in feature else feature
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def label_column(source: str, table: Any, asked: str | None) -> str:
    """Return the column of classes: the one asked for, or the only one that can be."""
    if asked is not None:
        return existing(source, asked, table.column_names)
    declared = [name for name in table.features if declared_names(table.features[name]) is not None]
    usual = [name for name in table.features if name in LABEL_NAMES]
    return only(source, declared or usual, table.column_names, what="classes", option="label_column")


def declared_names(feature: Any) -> list[str] | None:
    """Return the class names that a column declares, of single classes or of lists of them."""
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def class_names(where: Where, table: Any, column: str, separator: str | None) -> list[Label]:
    """Return the class name of every row, or a tuple of names where the column holds lists.

    Raises:
        RequestError: a row has no class, or the column holds neither classes, strings nor integers, nor lists of them.
    """
    names = declared_names(table.features[column])
    cells = _cells(table, column)
    if names is None:
        return labels_of(cells, where, column, separator=separator)
    labels: list[Label] = []
    for row, value in enumerate(cells):
        values = value if isinstance(value, list) else [value]
        if any(each is None or each < 0 for each in values):
            raise RequestError(f"{where(row)} has no class in column {column!r}; remove the row or label it")
        found = tuple(names[each] for each in values)
        check_once(found, value, where(row), column)
        labels.append(found if isinstance(value, list) else found[0])
    return labels
