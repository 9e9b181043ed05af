"""Files that list pictures: every form, every column, a run's manifest, and what is wrong in one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from data_helpers import photo, write_pictures

from vit_finetune.common.errors import RequestError
from vit_finetune.config.data import LIST_SUFFIXES
from vit_finetune.data import ImageSet, k_folds, load_splits, splits_from
from vit_finetune.data.manifest import manifest_hash, write_manifest
from vit_finetune.data.table_file import TEXT_SUFFIXES
from vit_finetune.pictures import labelled_pictures, open_splits

CLASSES = ["cat", "dog", "cat", "dog", "cat", "dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of six pictures below pics/."""
    write_pictures(tmp_path, {"pics": 6})
    return tmp_path


def rows_of(**more: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({"path": [f"pics/{index}.png" for index in range(6)], "label": CLASSES, **more})


def write(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as the ending of its file says, with pandas."""
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ";" if path.stem == "excel" else ",")
    return path


def names(images: ImageSet | None) -> list[str]:
    assert images is not None
    return [images.store.key(index) for index in range(len(images))]


@pytest.mark.parametrize("name", ["a.csv", "excel.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_load_splits__every_form_of_list(name: str, folder: Path) -> None:
    """The same rows as CSV (also with semicolons), TSV, JSON lines and parquet give the same splits and pixels."""
    source = write(rows_of(split=["train"] * 4 + ["val", "test"]), folder / name)
    splits = load_splits(source=source, test_split="test")
    assert splits.class_names == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 1, 0, 1]
    assert (names(splits.val), names(splits.test)) == (["pics/4.png"], ["pics/5.png"])
    assert np.array_equal(np.asarray(splits.train.load(2)), np.asarray(photo(2)))
    assert splits.notes == (f"{source}: splits as column 'split' says",)


def test_load_splits__paths_start_from_the_file_or_from_root(folder: Path, tmp_path: Path) -> None:
    """Relative paths count from the file's folder, or from data.root; absolute ones are taken as they are."""
    (folder / "lists").mkdir()
    table = rows_of()
    with pytest.raises(
        RequestError, match=r"a\.csv line 2, column 'path': no file .*lists/pics/0\.png.*and 1 more; paths"
    ):
        load_splits(source=write(table, folder / "lists" / "a.csv"))
    assert len(load_splits(source=folder / "lists" / "a.csv", root=folder, val_split=None).train) == 6
    table["path"] = [str(folder / name) for name in table["path"]]
    assert len(load_splits(source=write(table, folder / "lists" / "b.csv"), val_split=None).train) == 6


def test_load_splits__lists_of_classes_in_a_file(folder: Path) -> None:
    """Cells with a separator, and JSON lists, are sets of classes; an empty one is a picture without any."""
    several = ["cat|dog", "dog", "", "cat | indoors", "cat", "dog"]
    text = load_splits(source=write(rows_of(label=several), folder / "a.csv"), label_separator="|", val_split=None)
    lists = [[name.strip() for name in cell.split("|") if name.strip()] for cell in several]
    json_lists = load_splits(source=write(rows_of(label=lists), folder / "a.jsonl"), val_split=None)
    assert text.class_names == json_lists.class_names == ("cat", "dog", "indoors")
    assert text.train.labels.tolist() == json_lists.train.labels.tolist()
    assert text.train.labels[[0, 2, 3]].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_load_splits__group_and_time_columns(folder: Path) -> None:
    """split_by group and time read their columns; dates of every kind are ordered, in parquet too."""
    groups = ["p", "p", "q", "q", "r", "r"]
    splits = load_splits(source=write(rows_of(who=groups), folder / "a.csv"), split_by="group", group_column="who")
    held = names(splits.val)
    assert held in [["pics/0.png", "pics/1.png"], ["pics/2.png", "pics/3.png"], ["pics/4.png", "pics/5.png"]]
    days = ["2024-03-01", "2024-01-01T10:00:00+02:00", "2024-01-02", "2023-05-01", "2022-01-01", "2024-02-01T00:00:00"]
    options: dict[str, Any] = {"split_by": "time", "time_column": "day", "val_fraction": 0.34}
    by_text = load_splits(source=write(rows_of(day=days), folder / "b.csv"), **options)
    stamps = [datetime.fromisoformat(day) for day in days]
    stamps = [stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC) for stamp in stamps]
    by_stamp = load_splits(source=write(rows_of(day=stamps), folder / "b.parquet"), **options)
    assert names(by_text.val) == names(by_stamp.val) == ["pics/0.png", "pics/5.png"]


def test_load_splits__a_manifest_gives_back_the_split(folder: Path, tmp_path: Path) -> None:
    """A run's manifest.parquet is that run's data: same pictures, classes, numbers and hash, whatever the seed."""
    root = write_pictures(tmp_path / "photos", {"b": 10, "a": 10})
    first = load_splits(root=root, seed=3, test_fraction=0.2)
    digest = write_manifest(first, tmp_path / "run" / "manifest.parquet")
    again = load_splits(source=tmp_path / "run" / "manifest.parquet", test_split="test", seed=99)
    assert manifest_hash(again) == digest
    assert [names(images) for _, images in again.named()] == [names(images) for _, images in first.named()]
    only_train = load_splits(root=root, val_split=None)
    write_manifest(only_train, tmp_path / "all.parquet")
    assert load_splits(source=tmp_path / "all.parquet").val is None  # nothing is held out of a finished split
    root.rename(tmp_path / "moved")
    with pytest.raises(RequestError, match=r"row 0, column 'name': no file"):
        load_splits(source=tmp_path / "run" / "manifest.parquet")
    moved = load_splits(source=tmp_path / "run" / "manifest.parquet", root=tmp_path / "moved", test_split="test")
    assert manifest_hash(moved) == digest
    photo(777).save(Path(moved.train.name(0)))
    with pytest.raises(RequestError, match="is not the picture that the manifest lists"):
        moved.train.load(0)


def test_load_splits__a_manifest_of_pictures_in_memory(tmp_path: Path) -> None:
    """A manifest that cannot lead to its pictures says so."""
    samples = [(photo(index), "ab"[index % 2]) for index in range(6)]
    write_manifest(splits_from(samples), tmp_path / "manifest.parquet")
    with pytest.raises(RequestError, match="in memory, which it does not tell how to find"):
        load_splits(source=tmp_path / "manifest.parquet")


def test_k_folds__takes_the_groups_that_the_data_tells(folder: Path) -> None:
    """With split_by group and no val, folds keep the groups of the column together."""
    source = write(rows_of(who=["p", "p", "q", "q", "r", "r"]), folder / "a.csv")
    splits = load_splits(source=source, split_by="group", group_column="who", val_split=None)
    held = sorted(names(fold.test) for fold in k_folds(splits, 3))
    assert held == [["pics/0.png", "pics/1.png"], ["pics/2.png", "pics/3.png"], ["pics/4.png", "pics/5.png"]]
    assert k_folds(splits, 3)[0].train.groups in [("q", "q", "r", "r"), ("p", "p", "r", "r"), ("p", "p", "q", "q")]


def test_load_splits__a_manifest_keeps_declared_classes(tmp_path: Path) -> None:
    """Classes come back in the order of the run, with those that no picture has."""
    root = write_pictures(tmp_path / "photos", {"b": 2, "a": 2})
    splits = load_splits(root=root, val_split=None)
    swapped = type(splits)(
        train=ImageSet(splits.train.store, 1 - splits.train.labels),
        val=None,
        test=None,
        class_names=("b", "a", "never"),
    )
    write_manifest(swapped, tmp_path / "manifest.parquet")
    again = load_splits(source=tmp_path / "manifest.parquet")
    assert again.class_names == ("b", "a", "never")
    assert np.array_equal(again.train.labels, swapped.train.labels)


BAD: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "no rows": ("a.csv", "path,label\n", {}, "lists no pictures"),
    "nothing at all": ("a.csv", "", {}, "line 1 must name every column once"),
    "twice a column": ("a.csv", "path,path\n", {}, "line 1 must name every column once"),
    "no path column": (
        "a.csv",
        "where,label\nx.png,a\n",
        {},
        r"paths is none.*data\.image_column, one of where",
    ),
    "a choice": ("a.csv", "path,file,label\nx,y,a\n", {}, "paths could be path, file"),
    "no label column": ("a.csv", "path,what\npics/0.png,a\n", {}, r"classes is none.*data\.label_column"),
    "misspelt column": ("a.csv", "path,label\npics/0.png,a\n", {"label_column": "labels"}, "did you mean 'label'"),
    "short row": ("a.csv", "path,label\npics/0.png\n", {}, r"line 2 has 1 cells for 2 columns"),
    "open quote": ("a.csv", 'path,label\n"pics/0.png,a\n', {}, r"line 2: unexpected end of data"),
    "empty label": ("a.csv", "path,label\npics/0.png,a\n\npics/1.png,\n", {}, "line 4 has no class in column 'label'"),
    "empty path": ("a.csv", "path,label\n,a\n", {}, "line 2 has no path in column 'path'"),
    "empty split": ("a.csv", "path,label,split\npics/0.png,a,\n", {}, "line 2 has no split in column 'split'"),
    "path twice": (
        "a.csv",
        "path,label\npics/0.png,a\npics/0.png,b\n",
        {},
        "line 3 lists pics/0.png again, which .*line 2",
    ),
    "no such split": (
        "a.csv",
        "path,label,split\npics/0.png,a,training\n",
        {},
        "no split 'train'; did you mean",
    ),
    "not text": ("a.csv", "path,label\n\udcff,a\n", {}, "is not UTF-8 text"),
    "not JSON": ("a.jsonl", "{}\n{\n", {}, "line 2 is not JSON"),
    "no object": ("a.jsonl", "[1]\n", {}, "line 1 is no JSON object"),
    "half a class": ("a.jsonl", '{"path": "pics/0.png", "label": 0.5}\n', {}, r"line 1 has 0\.5 in column 'label'"),
    "class twice": ("a.jsonl", '{"path": "pics/0.png", "label": ["a", "a"]}\n', {}, "line 1 has a class twice"),
    "no date": (
        "a.csv",
        "path,label,day\npics/0.png,a,yesterday\n",
        {"split_by": "time", "time_column": "day"},
        "line 2 has 'yesterday' in column 'day'; a time is a number or a date",
    ),
    "mixed dates": (
        "a.csv",
        "path,label,day\npics/0.png,a,1\npics/1.png,a,2024-01-01\n",
        {"split_by": "time", "time_column": "day"},
        "line 3 .* mixes numbers and dates",
    ),
    "no group": (
        "a.csv",
        "path,label,who\npics/0.png,a,\n",
        {"split_by": "group", "group_column": "who"},
        "line 2 has nothing in column 'who'",
    ),
    "column nobody reads": (
        "a.csv",
        "path,label\n",
        {"group_column": "who"},
        "is read where data.split_by is",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_load_splits__bad_list_is_one_line(case: str, folder: Path) -> None:
    """Each mistake in a file is one line that names the row and the column."""
    name, text, options, message = BAD[case]
    (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RequestError, match=message) as caught:
        load_splits(source=folder / name, **options)
    assert "\n" not in str(caught.value)


def test_load_splits__files_that_are_not_there(folder: Path) -> None:
    """A missing list, a folder called like one, and damaged parquet: one line each."""
    (folder / "folder.csv").mkdir()
    (folder / "bad.parquet").write_bytes(b"PAR1 no more")
    for name, message in (
        ("nothing.csv", "does not exist; give a file"),
        ("folder.csv", "is a folder; give a file"),
        ("bad.parquet", "cannot read .*bad.parquet"),
    ):
        with pytest.raises(RequestError, match=message):
            load_splits(source=folder / name)
    with pytest.raises(RequestError, match="columns"):
        load_splits(root=folder, label_column="x")


def test_load_folder__a_list_to_score(folder: Path) -> None:
    """A list is scored whole, or the rows of its test or val split, or those asked for; unknown classes are told."""
    known = ("dog", "cat", "emu")
    whole = labelled_pictures(write(rows_of(), folder / "a.csv"), None, known)
    assert whole.labels.tolist() == [1, 0, 1, 0, 1, 0]
    source = write(rows_of(split=["train", "train", "train", "val", "val", "test"]), folder / "b.csv")
    assert [names(labelled_pictures(source, split, known)) for split in (None, "val")] == [
        ["pics/5.png"],
        ["pics/3.png", "pics/4.png"],
    ]
    with pytest.raises(RequestError, match="has no split 'dev'; it has train, val, test"):
        labelled_pictures(source, "dev", known)
    with pytest.raises(RequestError, match="classes that the model does not know: 'cat'"):
        labelled_pictures(folder / "a.csv", None, ("dog", "emu"))


def test_data_config__root_beside_a_list(folder: Path) -> None:
    """A recipe may give data.root beside a file that lists pictures, of every ending that is read as one."""
    assert set(LIST_SUFFIXES) == TEXT_SUFFIXES | {".parquet"}
    source = write(rows_of(), folder / "lists.csv")
    section = {"root": str(folder), "source": str(source), "test_fraction": 0.34, "val_split": None}
    assert [(name, len(images)) for name, images in open_splits(section).named()] == [("train", 4), ("test", 2)]


def test_write_manifest__says_what_the_file_says(folder: Path, tmp_path: Path) -> None:
    """Width, height and mode stand in the manifest; the class map and the folder in its metadata."""
    photo(1, 30, 40).convert("L").save(folder / "pics" / "1.png")
    write_manifest(load_splits(source=write(rows_of(), folder / "a.csv"), val_split=None), tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert [table[name][1].as_py() for name in ("width", "height", "mode")] == [30, 40, "L"]
    metadata = table.schema.metadata
    assert json.loads(metadata[b"class_names"]) == ["cat", "dog"]
    assert metadata[b"root"].decode() == str(folder)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_load_splits__weights_are_for_training(name: str, folder: Path, tmp_path: Path) -> None:
    """A column of weights comes with the training pictures alone, which others need not have, and into the manifest."""
    weights = [0.5, 2, 0, 1, None, None]
    source = write(rows_of(split=["train"] * 4 + ["val", "test"], importance=weights), folder / name)
    splits = load_splits(source=source, test_split="test", weight_column="importance")
    assert splits.train.weights is not None
    assert splits.train.weights.tolist() == weights[:4]
    assert splits.val is not None
    assert splits.val.weights is None
    plain = load_splits(source=source, test_split="test")
    assert manifest_hash(splits) != manifest_hash(plain)
    write_manifest(splits, tmp_path / "manifest.parquet")
    assert pq.read_table(tmp_path / "manifest.parquet")["weight"].to_pylist() == weights
    again = load_splits(source=tmp_path / "manifest.parquet", test_split="test", weight_column="weight")
    assert manifest_hash(again) == manifest_hash(splits)


def test_load_splits__weights_follow_their_pictures(folder: Path) -> None:
    """Where val is held out, each training picture keeps its own weight, and k_folds passes it on."""
    source = write(rows_of(weight=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), folder / "a.csv")
    train = load_splits(source=source, weight_column="weight").train
    for images in (train, *(fold.train for fold in k_folds(load_splits(source=source, weight_column="weight"), 2))):
        assert images.weights is not None
        assert names(images) == [f"pics/{int(weight) - 1}.png" for weight in images.weights]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1, -1, 1, 1, 1], r"line 4 has '-1' in column 'w'; a weight is a finite number of at least 0"),
        ([1, 1, 1, "inf", 1, 1], r"line 5 has 'inf'"),
        ([1, 1, 1, "heavy", 1, 1], r"line 5 has 'heavy'"),
        ([1, None, 1, 1, 1, 1], r"line 3 has '' .* every training picture has one"),
        ([0] * 6, r"every training picture has the weight 0"),
    ],
)
def test_load_splits__refuses_weights(weights: list[Any], message: str, folder: Path) -> None:
    """What is no weight is named with its row and column; all zeros teach nothing."""
    source = write(rows_of(w=pd.Series(weights, dtype=object)), folder / "a.csv")
    with pytest.raises(RequestError, match=message):
        load_splits(source=source, weight_column="w")
