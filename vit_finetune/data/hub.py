"""Tables of pictures -> stores and class names, through Hugging Face `datasets`.

Reads Hub data sets, `save_to_disk` folders, parquet and arrow files or folders of them. `datasets`
opens the table; pictures stay encoded and are decoded by images.py like any file. Local image
folders are not read here: `datasets` guesses splits and classes from their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.data.labels import Label

_TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
_LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target")


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


@dataclass(frozen=True)
class Tables:
    """The splits of a table.

    Attributes:
        parts: train, val, test: the pictures and the class name of each, or a tuple of names where the column holds
            lists; None where there is no such split.
        class_names: the class map that the table declares, in its order; None where it declares none.
        notes: for people: which splits were not read.
    """

    parts: tuple[tuple[TableStore, list[Label]] | None, ...]
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def read_tables(
    source: str,
    *,
    splits: tuple[str, tuple[str, ...], str | None],
    image_column: str | None,
    label_column: str | None,
) -> Tables:
    """Open a table and read the classes of its splits.

    Args:
        source: a Hub data set, or a path to a saved set, a parquet or arrow file, or a folder of these.
        splits: the name of train, the names val may have (none: no val), the name of test or None.
        image_column: the column of pictures; None guesses it.
        label_column: the column of classes; None guesses it.

    Raises:
        RequestError: the source, a split or a column does not exist, or a row has no class.
        WorkError: the Hub cannot be reached.
    """
    loaded = _open(source)
    by_split = loaded if isinstance(loaded, Mapping) else {splits[0]: loaded}  # one unsplit table: all of it is train
    train, vals, test = splits
    found = [name for name in vals if name in by_split][:1]
    if len(vals) == 1 and not found:  # one name: it was asked for, and is none of the usual ones
        raise _no_split(source, vals[0], by_split)
    wanted = (train, found[0] if found else None, test)
    parts: list[tuple[TableStore, list[Label]] | None] = []
    declared: tuple[str, ...] | None = None
    for name in wanted:
        if name is None:
            parts.append(None)
            continue
        if name not in by_split:
            raise _no_split(source, name, by_split)
        table = by_split[name]
        image = _image_column(source, table, image_column)
        label = _label_column(source, table, label_column)
        parts.append((_store(table, image, source, name), _class_names(source, name, table, label)))
        if name == train and _declared(table.features[label]) is not None:
            declared = tuple(_declared(table.features[label]) or ())
    unread = [name for name in by_split if name not in wanted]
    return Tables(tuple(parts), declared, (f"{source}: not read: {', '.join(unread)}",) if unread else ())


def _open(source: str) -> Any:
    """Return what `datasets` makes of a source: a data set, or a mapping of splits."""
    import datasets

    path = Path(source).expanduser()
    kind = _TABLE_SUFFIXES.get(path.suffix.lower())
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and kind:
        return datasets.load_dataset(kind, data_files=str(path))
    if path.exists():
        raise RequestError(
            f"{source} is neither parquet nor arrow nor a saved data set; for image folders set data.root"
        )
    if kind or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise RequestError(f"{source} does not exist; give a Hub data set (owner/name), a saved set, parquet or arrow")
    try:
        return datasets.load_dataset(source)
    except ConnectionError as error:
        raise WorkError(
            f"{source} is not a local path, and the Hub cannot be asked for a data set of that name: {error}; "
            "save it with `datasets` where there is network, bring the folder, and give its path"
        ) from error
    except (FileNotFoundError, ValueError) as error:  # DatasetNotFoundError is the first, a missing config the second
        raise RequestError(f"cannot open the Hub data set {source}: {' '.join(str(error).split())}") from error


def _open_folder(path: Path) -> Any:
    """Return what `datasets` makes of a folder: a saved set, or parquet or arrow files."""
    import datasets

    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(str(path))
    for suffix, kind in _TABLE_SUFFIXES.items():
        if any(path.rglob(f"*{suffix}")):
            return datasets.load_dataset(kind, data_dir=str(path))
    raise RequestError(
        f"{path} holds neither a saved data set nor parquet or arrow files; for image folders set data.root"
    )


def _store(table: Any, column: str, source: str, split: str) -> TableStore:
    """Return the pictures of a column, undecoded."""
    import datasets

    pictures = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return TableStore(pictures, column, source, split, np.arange(len(pictures), dtype=np.int64))


def _image_column(source: str, table: Any, asked: str | None) -> str:
    """Return the column of pictures: the one asked for, or the only one that can be."""
    if asked is not None:
        return _existing(source, table, asked)
    features = table.features
    likely = [name for name in features if type(features[name]).__name__ == "Image"]
    # parquet that was not written by `datasets` has the bytes without the word Image
    plain = [name for name in features if _is_bytes(features[name])]
    return _only(source, table, likely or plain, "pictures", "image_column")


def _is_bytes(feature: Any) -> bool:
    """Tell whether a column holds bytes, or a struct of bytes and path, as tables of pictures do."""
    inner = feature["bytes"] if isinstance(feature, Mapping) and "bytes" in feature else feature
    return getattr(inner, "dtype", None) in ("binary", "large_binary")


def _label_column(source: str, table: Any, asked: str | None) -> str:
    """Return the column of classes: the one asked for, or the only one that can be."""
    if asked is not None:
        return _existing(source, table, asked)
    declared = [name for name in table.features if _declared(table.features[name]) is not None]
    usual = [name for name in table.features if name in _LABEL_NAMES]
    return _only(source, table, declared or usual, "classes", "label_column")


def _existing(source: str, table: Any, column: str) -> str:
    """Return a column that was asked for, if the table has it."""
    if column not in table.features:
        raise RequestError(
            f"{source} has no column {column!r}{did_you_mean(column, table.column_names)}; it has "
            f"{', '.join(table.column_names)}"
        )
    return column


def _only(source: str, table: Any, candidates: Sequence[str], what: str, option: str) -> str:
    """Return the only candidate; ask the user where there is none or a choice."""
    if len(candidates) != 1:
        which = f"could be {', '.join(candidates)}" if candidates else "is none that we recognise"
        columns = ", ".join(table.column_names)
        raise RequestError(f"{source}: the column of {what} {which}; name it with data.{option}, one of {columns}")
    return candidates[0]


def _declared(feature: Any) -> list[str] | None:
    """Return the class names that a column declares, of single classes or of lists of them."""
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _class_names(source: str, split: str, table: Any, column: str) -> list[Label]:
    """Return the class name of every row, or a tuple of names where the column holds lists; a number is its own name.

    Raises:
        RequestError: a row has no class, or the column holds neither classes, strings nor integers, nor lists of them.
    """
    feature = table.features[column]
    names = _declared(feature)
    labels: list[Label] = []
    for row, value in enumerate(table.with_format(None).select_columns([column])[column][:]):
        where = f"{source}:{split}#{row}"
        values = value if isinstance(value, list) else [value]
        if any(each is None or (names is not None and each < 0) for each in values):
            raise RequestError(f"{where} has no class in column {column!r}; remove the row or label it")
        if not all(isinstance(each, int | str) for each in values):
            raise RequestError(f"{source}: column {column!r} holds {feature}; classes are strings or integers")
        found = tuple(names[each] if names is not None else str(each) for each in values)
        if len(set(found)) != len(found):
            raise RequestError(
                f"{where} has a class twice in column {column!r}: {value}; a list names the classes of a picture, each "
                "once (for rows of zeros and ones give an ImageSet with labels [N, K] from Python)"
            )
        labels.append(found if isinstance(value, list) else found[0])
    return labels


def _no_split(source: str, name: str, known: Mapping[str, Any]) -> RequestError:
    """Return the error about a split that a table lacks."""
    return RequestError(f"{source} has no split {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}")
