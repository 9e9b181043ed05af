"""A folder or a table of pictures -> `Splits` with one class map.

Folders are read by our own scanner: the class is the path below the split, so `x/small` and
`y/small` stay apart, and classes are numbered in natural order. Tables (Hub data sets, saved sets,
parquet, arrow) are opened by hub.py. Whatever the source, a class that only val or test knows is
an error and a class that val lacks keeps its number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_finetune.common.errors import RequestError
from vit_finetune.common.seeding import derive_seed
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.data.hub import read_tables
from vit_finetune.data.image_set import FileStore, ImageSet, ImageStore, Splits
from vit_finetune.data.labels import Label, classes_in, encode_labels, is_multilabel, strata, whole_classes
from vit_finetune.data.scan import endings, natural_key, scan_folder

__all__ = ["ImageSet", "Splits", "load_folder", "load_splits"]
FROM_PYTHON = "python"  # the `data.source` of a run that was given its pictures
VAL_NAMES = ("val", "valid", "validation")
_MAX_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Part:
    """The pictures of a split and the class name, or names, of each."""

    store: ImageStore
    classes: Sequence[Label]


@dataclass(frozen=True)
class Parts:
    """A source, read: its splits before they share a class map."""

    train: Part
    val: Part | None
    test: Part | None
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None = None  # where the source declares them


def load_splits(
    *,
    root: str | Path | None = None,
    source: str | Path | None = None,
    train_split: str = "train",
    val_split: str | None = "val",
    test_split: str | None = None,
    val_fraction: float = 0.2,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> Splits:
    """Open a data set.

    Args:
        root: a folder: `root/SPLIT/CLASS/...`, or `root/CLASS/...`, which is split here.
        source: instead of `root`: a Hub data set, a `save_to_disk` folder, or parquet/arrow.
        train_split: the split to train on.
        val_split: the split to validate on; "val" also finds valid and validation, and where the source has
            none of them but the test split, a share of the training split is held out. None: no validation.
        test_split: the split to test on, if any; never validated on, whatever it is called.
        val_fraction: the share of each class that is held out for validation where the source has no such
            split, in [0, 1); 0 holds nothing out. Every class keeps a training picture, and gives
            a validation picture if it has two.
        image_column: the column of pictures in a table; guessed where there is exactly one.
        label_column: the column of classes in a table; guessed where there is exactly one.
        seed: decides, with each picture's name and nothing else, what is held out.

    Returns:
        The splits, their one class map, and notes for people.

    Raises:
        RequestError: the source is missing, has no pictures, an empty class folder, a single class, or
            a class that only val or test knows.
    """
    if val_split not in (None, "val") and val_split == test_split:
        raise RequestError(f"data.val_split and data.test_split are both {val_split!r}; a test split selects nothing")
    if (root is None) == (source is None):
        raise RequestError("give either data.root (a folder) or data.source (a data set), and not both")
    if not 0 <= val_fraction < 1:
        raise RequestError(f"val_fraction is {val_fraction}; it must be at least 0 and below 1")
    if source == FROM_PYTHON:
        raise RequestError(
            "these pictures came from Python; give them again: finetune(..., data=...), or name a folder"
        )
    if root is not None:
        parts = _read_root(Path(root).expanduser(), train_split, val_split, test_split)
    else:
        tables = read_tables(
            str(source),
            splits=(train_split, val_names(val_split, test_split), test_split),
            image_column=image_column,
            label_column=label_column,
        )
        train, val, test = (None if table is None else Part(*table) for table in tables.parts)
        assert train is not None  # read_tables always returns a training split
        parts = Parts(train, val, test, tables.notes, tables.class_names)
    if parts.val is None and val_split is not None and val_fraction > 0:
        parts = hold_out(parts, val_fraction, seed)
    return share_class_map(parts)


def load_folder(root: str | Path, class_names: Sequence[str]) -> ImageSet:
    """Open `root/CLASS/...` with the class map of a finished model.

    Args:
        root: a folder of class folders; it may lack classes.
        class_names: the model's classes in the order of their index.

    Raises:
        RequestError: the folder is missing or empty, or holds a class that the model does not know.
    """
    root = Path(root).expanduser()
    part, _ = _read_classes(root)
    unknown = sorted(classes_in(part.classes) - set(class_names), key=natural_key)
    if unknown:
        raise RequestError(
            f"{root} holds classes that the model does not know: {_listed(unknown)}"
            f"{did_you_mean(unknown[0], class_names)}; it knows {_listed(class_names)}"
        )
    return _labelled(part, class_names)


def val_names(val_split: str | None, test_split: str | None = None) -> tuple[str, ...]:
    """Return the names that a validation split may have: the usual ones for "val", else the one asked for.

    The split that is tested on is none of them.
    """
    if val_split is None:
        return ()
    names = VAL_NAMES if val_split == "val" else (val_split,)
    return tuple(name for name in names if name != test_split)


def _read_root(root: Path, train_split: str, val_split: str | None, test_split: str | None) -> Parts:
    """Read a folder in either layout."""
    folders = _subfolders(root)
    if _has_folders(root / train_split):
        return _read_split_folders(root, folders, train_split, val_split, test_split)
    missing = f"{root} holds no folder {train_split}/ with class folders in it"
    looked = f"looked for {root}/{train_split}/CLASS/... and {root}/CLASS/... with files ending in {endings()}"
    if train_split != "train" or test_split is not None:
        raise RequestError(f"{missing}; it holds {_listed(folders)}{did_you_mean(train_split, folders)}")
    if folders and set(folders) <= {"train", "test", *VAL_NAMES}:
        raise RequestError(f"{missing}; it holds {_listed(folders)}; {looked}")
    if len(folders) == 1 and _has_folders(root / folders[0] / train_split):
        raise RequestError(f"{missing}; did you mean {root / folders[0]}?")
    part, notes = _read_classes(root, looked)
    return Parts(part, None, None, notes)


def _read_split_folders(
    root: Path, folders: Sequence[str], train_split: str, val_split: str | None, test_split: str | None
) -> Parts:
    """Read `root/SPLIT/CLASS/...`."""
    val_found = [name for name in val_names(val_split, test_split) if (root / name).is_dir()][:1]
    if val_split not in (None, "val") and not val_found:
        raise RequestError(f"{root} has no folder {val_split}; it holds {_listed(folders)}")
    if test_split is not None and not (root / test_split).is_dir():
        raise RequestError(
            f"{root} has no folder {test_split}; it holds {_listed(folders)}{did_you_mean(test_split, folders)}"
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
        notes.append(f"{root}: not read: {_listed(unread)}")
    val = parts[val_found[0]] if val_found else None
    test = parts[test_split] if test_split is not None else None
    return Parts(parts[train_split], val, test, tuple(notes))


def _read_classes(root: Path, looked: str | None = None) -> tuple[Part, tuple[str, ...]]:
    """Read `root/CLASS/...`; return its pictures with their classes, and notes."""
    _subfolders(root)
    found = scan_folder(root)
    if found.empty and found.names:
        raise RequestError(
            f"{root} has class folders without pictures: {_listed(found.empty)}; fill or remove them "
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


def hold_out(parts: Parts, fraction: float, seed: int) -> Parts:
    """Move a share of every class from train to val, chosen by (seed, picture name) alone."""
    store, classes = parts.train.store, parts.train.classes
    members = strata(classes)
    in_val = np.zeros(len(store), dtype=bool)
    for indices in members.values():
        count = min(max(int(fraction * len(indices) + 0.5), 1), len(indices) - 1)
        ranked = sorted(indices, key=lambda index: derive_seed(seed, "val", store.key(index)))
        in_val[ranked[:count]] = True
    in_val[whole_classes(classes, in_val)] = False
    notes = [f"held out {fraction:.0%} of each class for validation: {in_val.sum():,} of {len(store):,} pictures"]
    single = [label for label, indices in members.items() if len(indices) == 1]
    if single and not is_multilabel(classes):
        notes.append(f"classes with a single picture are not validated: {_listed(single)}")
    if not in_val.any():
        raise RequestError(
            "every class has a single picture, so none can be held out; add pictures or set val_split: null"
        )
    train, val = (
        Part(store.take(indices), [classes[index] for index in indices.tolist()])
        for indices in (np.flatnonzero(~in_val), np.flatnonzero(in_val))
    )
    return Parts(train, val, parts.test, (*parts.notes, *notes), parts.class_names)


def share_class_map(parts: Parts) -> Splits:
    """Number the classes of the training split and label every split by them."""
    trained = classes_in(parts.train.classes)
    class_names = parts.class_names or tuple(sorted(trained, key=natural_key))
    if len(trained) < 2:
        raise RequestError(
            f"only one class, {_listed(sorted(trained))}; a classifier needs two, one folder or label each"
        )
    for name, part in (("val", parts.val), ("test", parts.test)):
        if part and is_multilabel(part.classes) != is_multilabel(parts.train.classes):
            raise RequestError(f"{name} and train disagree on whether a picture has one class or a list of them")
        unknown = sorted(classes_in(part.classes) - trained, key=natural_key) if part else []
        if unknown:
            raise RequestError(
                f"classes in {name} that train does not have: {_listed(unknown)}{did_you_mean(unknown[0], trained)}"
                f"; train has {_listed(class_names)}"
            )
    notes = list(parts.notes)
    unused = [name for name in class_names if name not in trained]
    if unused:
        notes.append(f"classes without a training picture: {_listed(unused)}")
    return Splits(
        train=_labelled(parts.train, class_names),
        val=_labelled(parts.val, class_names) if parts.val else None,
        test=_labelled(parts.test, class_names) if parts.test else None,
        class_names=class_names,
        notes=tuple(notes),
    )


def _labelled(part: Part, class_names: Sequence[str]) -> ImageSet:
    """Return the pictures with class indices for class names."""
    return ImageSet(part.store, encode_labels(part.classes, class_names))


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


def _listed(names: Sequence[str]) -> str:
    """Return names for a message: the first ten, then how many more."""
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMES_SHOWN]) or "no folders"
    more = len(names) - _MAX_NAMES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
