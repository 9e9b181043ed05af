"""A folder or a table of pictures -> `Splits` with one class map.

Folders are read by our own scanner: the class is the path below the split, so `x/small` and
`y/small` stay apart, and classes are numbered in natural order. Tables (Hub data sets, saved sets,
parquet, arrow) are opened by hub.py. Whatever the source, a class that only val or test knows is
an error and a class that val lacks keeps its number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean, listed
from vit_finetune.data.class_map import labelled, share_class_map
from vit_finetune.data.columns import Columns, SplitNames
from vit_finetune.data.hub import read_tables
from vit_finetune.data.image_set import FileStore, ImageSet, Splits
from vit_finetune.data.labels import classes_in
from vit_finetune.data.parts import Part, Parts
from vit_finetune.data.scan import endings, natural_key, scan_folder
from vit_finetune.data.shards import names_shards, read_shards
from vit_finetune.data.splitting import SplitBy, SplitRule, split
from vit_finetune.data.streaming import read_stream
from vit_finetune.data.table_file import lists_pictures, read_list, read_table_file

__all__ = ["ImageSet", "Splits", "load_folder", "load_splits"]
FROM_PYTHON = "python"  # the `data.source` of a run that was given its pictures
VAL_NAMES = ("val", "valid", "validation")


def load_splits(
    *,
    root: str | Path | None = None,
    source: str | Path | None = None,
    train_split: str = "train",
    val_split: str | None = "val",
    test_split: str | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    split_by: SplitBy = "stratified",
    group_pattern: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
    label_separator: str | None = None,
    weight_column: str | None = None,
    keep_duplicates_together: bool = False,
    streaming: bool = False,
    seed: int = 0,
) -> Splits:
    """Open a data set.

    Args:
        root: a folder, `root/SPLIT/CLASS/...` or `root/CLASS/...`, split here; beside a list: where paths start.
        source: a list of pictures (CSV, TSV, JSON lines, parquet, a run's manifest), WebDataset shards, a Hub data set,
            a `save_to_disk` folder, or parquet/arrow with the pictures inside.
        train_split: the split to train on.
        val_split: the split to validate on; "val" also finds valid and validation; None: no validation.
        test_split: the split to test on, if any; never validated on, whatever it is called.
        val_fraction: the share held out for validation where the source has no such split, in [0, 1).
        test_fraction: the share that is held out as the test split where none is named, in [0, 1).
        split_by: what is held out; see `SplitRule`.
        group_pattern: with split_by "group": finds the group in a picture's name.
        image_column: the column of pictures or paths in a table; guessed where there is exactly one.
        label_column: the column of classes in a table; guessed where there is exactly one.
        split_column: the column of splits; of a list, `split` is found.
        group_column: with split_by "group": the column of groups.
        time_column: with split_by "time": the column of times, numbers or dates.
        label_separator: parts the classes in a text column that holds several.
        weight_column: the column of what each training picture weighs in the loss.
        keep_duplicates_together: hold out copies of a picture together or not at all; see `keep_copies_together`.
        streaming: fetch parquet, of the Hub or of a folder, a row group at a time; see `read_stream`.
        seed: decides, with each picture's name and nothing else, what is held out.

    Returns:
        The splits, their one class map, and notes for people.

    Raises:
        RequestError: the source is missing or empty, or has a single class, an empty one, or one that train lacks.
    """
    rule = SplitRule(split_by, val_fraction, test_fraction, group_pattern, seed, keep_duplicates_together)
    names = SplitNames(train_split, val_names(val_split, test_split), test_split)
    named = (image_column, label_column, split_column, group_column, time_column, label_separator, weight_column)
    columns = Columns(*named)
    _check_read(rule, columns)
    _check_names(val_split, test_split)
    parts = _read_streamed(root, source, names, columns) if streaming else _read(root, source, names, columns)
    return share_class_map(split(parts, rule, with_val=val_split is not None, place=_place(root, source)))


def _read_streamed(root: str | Path | None, source: str | Path | None, splits: SplitNames, columns: Columns) -> Parts:
    """Open what is fetched a row group at a time."""
    if root is not None or source is None or source == FROM_PYTHON or names_shards(source):
        raise RequestError(
            "data.streaming is for a data.source of parquet files; everything else is read where it lies"
        )
    return read_stream(str(source), splits=splits, columns=columns)


def _place(root: str | Path | None, source: str | Path | None) -> str | Path | None:
    """Return what the files of a folder or a list are known again by; None for pictures that are no files."""
    return None if source is not None and not lists_pictures(source) else source or root


def _check_names(val_split: str | None, test_split: str | None) -> None:
    """Refuse to select by the test split."""
    if val_split not in (None, "val") and val_split == test_split:
        raise RequestError(f"data.val_split and data.test_split are both {val_split!r}; a test split selects nothing")


def _check_read(rule: SplitRule, columns: Columns) -> None:
    """Refuse what would not be read."""
    for option, value, by in (
        ("group_column", columns.group, "group"),
        ("group_pattern", rule.group_pattern, "group"),
        ("time_column", columns.time, "time"),
    ):
        if value is not None and rule.by != by:
            raise RequestError(f"data.{option} is read where data.split_by is {by}, and that is {rule.by}")
    if rule.keep_copies and rule.by == "time":
        raise RequestError("data.keep_duplicates_together does not go with data.split_by time: copies may part in time")
    if columns.group is not None and rule.group_pattern is not None:
        raise RequestError("give data.group_column or data.group_pattern, and not both")


def _read(root: str | Path | None, source: str | Path | None, splits: SplitNames, columns: Columns) -> Parts:
    """Open what is named, in the way that it takes."""
    folder = None if root is None else Path(root).expanduser()
    if source == FROM_PYTHON:
        raise RequestError(
            "these pictures came from Python; give them again: finetune(..., data=...), or name a folder"
        )
    if source is not None and lists_pictures(source):
        return read_table_file(Path(source).expanduser(), root=folder, columns=columns, splits=splits)
    if source is not None and folder is None and names_shards(source):
        return read_shards(str(source), splits=splits, columns=columns)
    if source is not None and folder is None:
        return read_tables(str(source), splits=splits, columns=columns)
    if source is not None or folder is None:
        raise RequestError(
            "give either data.root (a folder) or data.source (a data set), and not both; they go together only where "
            "the source is a file that lists paths"
        )
    if columns != Columns():
        raise RequestError("data.root is a folder, which has no columns; they are of a data.source")
    return _read_root(folder, splits)


def load_folder(root: str | Path, class_names: Sequence[str], *, split: str | None = None) -> ImageSet:
    """Open `root/CLASS/...`, or a file that lists pictures, with the class map of a finished model.

    Args:
        root: a folder of class folders, or the file; it may lack classes.
        class_names: the model's classes in the order of their index.
        split: of a file, which rows; see `read_list`.

    Raises:
        RequestError: the folder is missing or empty, or holds a class that the model does not know.
    """
    root = Path(root).expanduser()
    part = read_list(root, split) if lists_pictures(root) else _read_classes(root)[0]
    unknown = sorted(classes_in(part.classes) - set(class_names), key=natural_key)
    if unknown:
        raise RequestError(
            f"{root} holds classes that the model does not know: {listed(unknown)}"
            f"{did_you_mean(unknown[0], class_names)}; it knows {listed(class_names)}"
        )
    return labelled(part, class_names)


def val_names(val_split: str | None, test_split: str | None = None) -> tuple[str, ...]:
    """Return the names that a validation split may have: the usual ones for "val", else the one asked for.

    The split that is tested on is none of them.
    """
    if val_split is None:
        return ()
    names = VAL_NAMES if val_split == "val" else (val_split,)
    return tuple(name for name in names if name != test_split)


def _read_root(root: Path, splits: SplitNames) -> Parts:
    """Read a folder in either layout."""
    train_split, test_split = splits.train, splits.test
    folders = _subfolders(root)
    if _has_folders(root / train_split):
        return _read_split_folders(root, folders, splits)
    missing = f"{root} holds no folder {train_split}/ with class folders in it"
    looked = f"looked for {root}/{train_split}/CLASS/... and {root}/CLASS/... with files ending in {endings()}"
    if train_split != "train" or test_split is not None:
        raise RequestError(
            f"{missing}; it holds {listed(folders, none='no folders')}{did_you_mean(train_split, folders)}"
        )
    if folders and set(folders) <= {"train", "test", *VAL_NAMES}:
        raise RequestError(f"{missing}; it holds {listed(folders, none='no folders')}; {looked}")
    if len(folders) == 1 and _has_folders(root / folders[0] / train_split):
        raise RequestError(f"{missing}; did you mean {root / folders[0]}?")
    part, notes = _read_classes(root, looked)
    return Parts(part, None, None, notes)


def _read_split_folders(root: Path, folders: Sequence[str], splits: SplitNames) -> Parts:
    """Read `root/SPLIT/CLASS/...`."""
    train_split, test_split = splits.train, splits.test
    val_found = [name for name in splits.val if (root / name).is_dir()][:1]
    if len(splits.val) == 1 and not val_found:  # one name: it was asked for
        raise RequestError(f"{root} has no folder {splits.val[0]}; it holds {listed(folders, none='no folders')}")
    if test_split is not None and not (root / test_split).is_dir():
        raise RequestError(
            f"{root} has no folder {test_split}; it holds {listed(folders)}{did_you_mean(test_split, folders)}"
        )
    read = [train_split, *val_found, *([test_split] if test_split is not None else [])]
    parts: dict[str, Part] = {}
    notes: list[str] = []
    for name in read:
        part, left_out = _read_classes(root / name)
        # names start from the root, so that a picture is called the same in every file of a run
        names = tuple(f"{name}/{part.store.key(index)}" for index in range(len(part.store)))
        parts[name] = Part(FileStore(root, names), part.classes)
        notes += left_out
    unread = [name for name in folders if name not in {Path(split).parts[0] for split in read}]
    if unread:
        notes.append(f"{root}: not read: {listed(unread)}")
    val = parts[val_found[0]] if val_found else None
    test = parts[test_split] if test_split is not None else None
    return Parts(parts[train_split], val, test, tuple(notes))


def _read_classes(root: Path, looked: str | None = None) -> tuple[Part, tuple[str, ...]]:
    """Read `root/CLASS/...`; return its pictures with their classes, and notes."""
    _subfolders(root)
    found = scan_folder(root)
    if found.empty and found.names:
        raise RequestError(
            f"{root} has class folders without pictures: {listed(found.empty)}; fill or remove them "
            f"(pictures end in {endings()})"
        )
    if not found.names:
        looked = looked or f"looked for {root}/CLASS/... with files ending in {endings()}"
        raise RequestError(f"no pictures below {root}; {looked}")
    classes = [unicodedata.normalize("NFC", name.rpartition("/")[0]) for name in found.names]
    loose = [name for name, label in zip(found.names, classes, strict=True) if not label]
    if loose:
        raise RequestError(
            f"{root} holds {len(loose):,} pictures outside of any class folder, the first is {loose[0]}; "
            "move each into the folder of its class"
        )
    return Part(FileStore(root, found.names), classes), found.notes(root)


def _subfolders(root: Path) -> list[str]:
    """Return the names of the visible folders in a folder, in natural order."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        beside = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
        raise RequestError(
            f"the data folder {root} {what}{did_you_mean(root.name, beside)}; "
            "give a folder with one folder of pictures for each class"
        )
    names = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=natural_key)


def _has_folders(folder: Path) -> bool:
    """Tell whether a folder exists and holds visible folders."""
    return folder.is_dir() and bool(_subfolders(folder))
