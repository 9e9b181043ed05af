"""Tables: saved sets, parquet, arrow; columns and classes found or asked for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encode, photo

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.data import load_splits
from vit_finetune.data.manifest import write_manifest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tables out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(labels: list[Any], kind: Any, *, seed: int = 0, **more: Any) -> datasets.Dataset:
    """Return a table of pictures with a column `label` of a kind."""
    pictures = [{"bytes": encode(photo(seed + row)), "path": None} for row in range(len(labels))]
    features = {"image": datasets.Image(), "label": kind, **{name: datasets.Value("int64") for name in more}}
    return datasets.Dataset.from_dict(
        {"image": pictures, "label": labels, **more}, features=datasets.Features(features)
    )


def test_load_splits__saved_set_with_declared_classes(tmp_path: Path) -> None:
    """A saved DatasetDict: its own class order, its validation split, pictures equal to the ones put in."""
    kind = datasets.ClassLabel(names=["zebra", "ant"])
    folder = tmp_path / "saved"
    datasets.DatasetDict(
        train=table([0, 1, 1], kind), validation=table([1], kind, seed=50), extra=table([0], kind)
    ).save_to_disk(str(folder))
    splits = load_splits(source=folder)
    assert splits.class_names == ("zebra", "ant")
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert splits.val is not None
    assert splits.val.labels.tolist() == [1]
    assert splits.val.name(0) == f"{folder}:validation#0"
    assert splits.notes == (f"{folder}: not read: extra",)
    assert np.array_equal(np.asarray(splits.val.load(0)), np.asarray(photo(50)))
    copy = pickle.loads(pickle.dumps(splits.train))
    assert np.array_equal(np.asarray(copy.load(2)), np.asarray(photo(2)))


@pytest.mark.parametrize("form", ["parquet", "parquet folder", "arrow", "plain parquet"])
def test_load_splits__files_of_a_table(form: str, tmp_path: Path) -> None:
    """Parquet and arrow, a file or a folder, with or without the word Image: one split, held out here."""
    rows = table(["b", "a"] * 5, datasets.Value("string"))
    source = tmp_path / "table" / ("train-00000-of-00001.arrow" if form == "arrow" else "train-00000-of-00001.parquet")
    source.parent.mkdir()
    if form == "arrow":
        with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_stream(sink, rows.data.table.schema) as writer:
            writer.write_table(rows.data.table)
    elif form == "plain parquet":
        pq.write_table(rows.data.table.replace_schema_metadata(None), source)
    else:
        rows.to_parquet(str(source))
    splits = load_splits(source=source.parent if form == "parquet folder" else source)
    assert splits.class_names == ("a", "b")
    assert splits.val is not None
    assert sorted(splits.val.labels.tolist()) == [0, 1]
    rows_seen = {int(images.store.key(i).partition("#")[2]) for _, images in splits.named() for i in range(len(images))}
    assert rows_seen == set(range(10))
    row = int(splits.val.store.key(0).partition("#")[2])
    assert np.array_equal(np.asarray(splits.val.load(0)), np.asarray(photo(row)))


def test_load_splits__the_test_split_of_a_table_is_never_validated_on(tmp_path: Path) -> None:
    """A table's val that is tested on leaves no val: a share of train is held out."""
    kind = datasets.ClassLabel(names=["a", "b"])
    tables = {"train": table([0, 1] * 5, kind), "val": table([1], kind)}
    datasets.DatasetDict(**tables).save_to_disk(str(tmp_path / "saved"))
    splits = load_splits(source=tmp_path / "saved", test_split="val")
    assert [(name, len(pictures)) for name, pictures in splits.named()] == [("train", 8), ("val", 2), ("test", 1)]


def test_load_splits__integer_classes_in_natural_order(tmp_path: Path) -> None:
    """Integers are their own names, in the order of their value; a table without splits is all train."""
    table([10, 9, 9, 10, 100], datasets.Value("int64")).save_to_disk(str(tmp_path / "saved"))
    splits = load_splits(source=tmp_path / "saved", val_split=None)
    assert splits.class_names == ("9", "10", "100")
    assert splits.train.labels.tolist() == [1, 0, 0, 1, 2]


def test_load_splits__names_the_class_that_only_val_has(tmp_path: Path) -> None:
    """Also where the table declares it; a declared class that nobody has is a note."""
    kind = datasets.ClassLabel(names=["a", "b", "c", "d"])
    datasets.DatasetDict(train=table([0, 1], kind), val=table([2], kind)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match="classes in val that train does not have: 'c'"):
        load_splits(source=tmp_path / "saved")
    splits = load_splits(source=tmp_path / "saved", val_split=None)
    assert splits.notes[-1] == "classes without a training picture: 'c', 'd'"
    assert splits.class_names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"val_split": "dev"}, "no split 'dev'"),
        ({"test_split": "test"}, "no split 'test'"),
        ({"image_column": "img"}, "no column 'img'"),
        ({"label_column": "labl"}, "no column 'labl'; did you mean 'label'"),
    ],
)
def test_load_splits__unknown_name_in_a_table(options: dict[str, str], message: str, tmp_path: Path) -> None:
    """A split or a column that is not there is named, with the nearest that is."""
    datasets.DatasetDict(train=table([0, 1], datasets.Value("int64"))).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match=message):
        load_splits(source=tmp_path / "saved", **options)  # type: ignore[arg-type]


def test_load_splits__asks_where_a_column_is_a_choice(tmp_path: Path) -> None:
    """Two columns that could be the class, or none: the user is asked, and may answer."""
    rows = table([0, 1, 0, 1], datasets.Value("int64"), category=[0, 0, 1, 1], size=[1, 1, 1, 2])
    rows.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match=r"classes could be label, category; name it with data\.label_column"):
        load_splits(source=tmp_path / "saved")
    splits = load_splits(source=tmp_path / "saved", label_column="size", val_split=None)
    assert splits.train.labels.tolist() == [0, 0, 0, 1]
    rows.remove_columns("image").save_to_disk(str(tmp_path / "blind"))
    with pytest.raises(RequestError, match="pictures is none that we recognise"):
        load_splits(source=tmp_path / "blind")


SEVERAL = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "indoors"]))


def test_load_splits__lists_of_classes(tmp_path: Path) -> None:
    """A column of lists gives rows of zeros and ones; what is held out leaves every class a training picture."""
    labels = [[0], [1, 2], [], [0, 2], [1], [0, 1, 2], [0], [1], [0], [1]]
    table(labels, SEVERAL).save_to_disk(str(tmp_path / "saved"))
    splits = load_splits(source=tmp_path / "saved")
    assert splits.class_names == ("cat", "dog", "indoors")
    assert splits.val is not None
    assert splits.train.is_multilabel
    assert splits.val.is_multilabel
    assert splits.train.class_counts(3).min() >= 1
    for _, images in splits.named():
        for row in range(len(images)):
            wanted = labels[int(images.store.key(row).partition("#")[2])]
            assert images.labels[row].nonzero()[0].tolist() == wanted
    write_manifest(splits, tmp_path / "manifest.parquet")
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    assert [row["class_name"] for row in rows if row["name"] == "train#3"] == [["cat", "indoors"]]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([[0, 0], [1]], SEVERAL, "train#0 has a class twice"),
        ([[0, -1], [1]], SEVERAL, "train#0 has no class"),
        (["a", None], datasets.Value("string"), "train#1 has no class"),
        ([0, -1], datasets.ClassLabel(names=["a", "b"]), "train#1 has no class"),
        ([0.5, 1.0], datasets.Value("float64"), "classes are strings or integers"),
        ([3, 3], datasets.Value("int64"), "only one class, '3'"),
    ],
)
def test_load_splits__bad_classes_in_a_table(labels: list[Any], kind: Any, message: str, tmp_path: Path) -> None:
    """Rows without a class, classes that are no names, a single class: one line each."""
    table(labels, kind).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match=message):
        load_splits(source=tmp_path / "saved")


def test_load_splits__bad_picture_in_a_table(tmp_path: Path) -> None:
    """A row without a picture, or whose file is gone, is named when it is read."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    photo(0).save(tmp_path / "gone.png")
    pictures = [None, {"bytes": None, "path": str(tmp_path / "gone.png")}, {"bytes": b"no picture", "path": None}]
    rows = datasets.Dataset.from_dict({"image": pictures, "label": ["a", "b", "a"]}, features=features)
    (tmp_path / "saved").mkdir()
    rows.to_parquet(str(tmp_path / "saved" / "train.parquet"))
    (tmp_path / "gone.png").unlink()
    images = load_splits(source=tmp_path / "saved", val_split=None).train
    for index, message in enumerate(
        ["train#0 has no picture", "gone.png, row .*train#1", "train#2: it is not a picture"]
    ):
        with pytest.raises(RequestError, match=message):
            images.load(index)


def test_load_splits__source_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing path, a folder or file of another kind, and the Hub without network: one line each."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.txt").write_text("a,b")
    for source, message in (
        ("nothing.parquet", "does not exist"),
        ("empty", "neither a saved data set nor parquet"),
        ("rows.txt", "nor parquet nor arrow"),
    ):
        with pytest.raises(RequestError, match=message):
            load_splits(source=tmp_path / source)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(WorkError, match="someone/pets is not a local path, and the Hub cannot be asked"):
        load_splits(source="someone/pets")

    def refuse(*args: object, **options: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'someone/pets' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(RequestError, match=r"cannot open the Hub data set someone/pets: .*doesn't exist on the Hub$"):
        load_splits(source="someone/pets")


@pytest.mark.parametrize("streaming", [False, True])
def test_load_splits__weights_of_a_table(streaming: bool, tmp_path: Path) -> None:
    """A column of weights comes with the training rows of a table, read whole or streamed, and stays with them."""
    source = tmp_path / "train-00000-of-00001.parquet"
    table([0, 1] * 4, datasets.ClassLabel(names=["a", "b"]), importance=list(range(8))).to_parquet(source)
    splits = load_splits(source=source, weight_column="importance", streaming=streaming)
    assert splits.train.weights is not None
    assert [int(splits.train.store.key(index).split("#")[1]) for index in range(6)] == splits.train.weights.tolist()
    assert splits.val is not None
    assert splits.val.weights is None
