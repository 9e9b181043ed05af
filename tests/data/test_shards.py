"""WebDataset shards: the same samples as Hugging Face's reader finds, in any order, once an epoch over two ranks."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from data_helpers import encode, photo

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import load_splits
from vit_finetune.data.loader import train_batches
from vit_finetune.data.manifest import manifest_hash
from vit_finetune.data.transforms import build_eval_transform


def write_shard(path: Path, samples: Sequence[Mapping[str, bytes]], *, first: int = 0, kind: str = "w") -> Path:
    """Write samples {extension: bytes}, called 0000, 0001, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for number, files in enumerate(samples, start=first):
            for extension, data in files.items():
                member = tarfile.TarInfo(f"birds/{number:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def sample(number: int, **more: Any) -> dict[str, bytes]:
    """Return a picture with its class 0 or 1, as text, or with `more` as an object."""
    told = (
        {"json": json.dumps({"label": "ab"[number % 2], **more}).encode()} if more else {"cls": b"%d\n" % (number % 2)}
    )
    return {"png": encode(photo(number)), **told}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a folder with 14 training samples in three shards and 4 of val in one."""
    for shard in range(3):
        numbers = range(5 * shard, min(5 * shard + 5, 14))
        write_shard(tmp_path / f"birds-train-{shard:03d}.tar", [sample(n) for n in numbers], first=5 * shard)
    write_shard(tmp_path / "birds-val-000.tar", [sample(n) for n in range(20, 24)], first=20)
    return tmp_path


def test_load_splits__shards_as_hugging_face_reads_them(shards: Path) -> None:
    """Every sample is there, by name, class and pixel, as the loader of `datasets` gives it."""
    splits = load_splits(source=shards)
    files = {"train": str(shards / "birds-train-*.tar"), "val": str(shards / "birds-val-*.tar")}
    theirs = datasets.load_dataset("webdataset", data_files=files, streaming=True)
    for name, images in splits.named():
        rows = list(theirs[name])
        assert len(rows) == len(images)
        for index, row in enumerate(rows):
            assert images.store.key(index).partition(":")[2] == f"{row['__key__']}.png"
            assert splits.class_names[images.labels[index]] == str(row["cls"])
            assert np.array_equal(np.asarray(images.load(index)), np.asarray(row["png"]))
    assert splits.train.name(6) == f"{shards}/birds-train-001.tar:birds/0006.png"


def test_load_splits__shards_travel_and_mix(shards: Path) -> None:
    """A store goes to another process; the manifest is the same wherever the shards lie."""
    splits = load_splits(source=shards)
    picked = pickle.loads(pickle.dumps(splits.train.store.take(np.array([13, 0]))))
    assert [picked.key(0), picked.key(1)] == [
        "birds-train-002.tar:birds/0013.png",
        "birds-train-000.tar:birds/0000.png",
    ]
    digest = manifest_hash(splits)
    moved = shards.rename(shards.with_name("moved"))
    assert manifest_hash(load_splits(source=moved)) == digest


def test_train_batches__shards_under_two_ranks(shards: Path) -> None:
    """Over two ranks an epoch visits each sample of the shards once, each with its own pixels."""
    images = load_splits(source=shards).train
    transform = build_eval_transform(PreprocessSpec(input_size=(3, 8, 8)))
    for epoch in range(2):
        seen = []
        for rank in range(2):
            steps = train_batches(
                images,
                transform,
                seed=0,
                global_batch_size=7,
                per_device_batch_size=2,
                start_step=2 * epoch,
                num_steps=2,
                rank=rank,
                world_size=2,
            )
            for batch in (batch for step in steps for batch in step):
                for index, pixels in zip(batch.indices.tolist(), batch.images, strict=True):
                    seen.append(index)
                    assert np.array_equal(pixels.numpy(), transform(photo(index)).numpy())
        assert sorted(seen) == list(range(14))


def test_load_splits__patterns_folders_and_single_shards(tmp_path: Path) -> None:
    """A pattern, folders called like splits, one file: what is of no split is train."""
    for split, first in (("train", 0), ("val", 8), ("extra", 12)):
        write_shard(tmp_path / split / "00000.tar", [sample(n) for n in range(first, first + 4)], first=first)
    splits = load_splits(source=tmp_path)
    assert [(name, len(images)) for name, images in splits.named()] == [("train", 4), ("val", 4)]
    assert splits.train.store.key(0) == "train/00000.tar:birds/0000.png"
    assert splits.notes == (f"{tmp_path}: not read: 'extra'",)
    for source, count in (
        (tmp_path / "extra" / "00000.tar", 4),
        (tmp_path / "*" / "0000{0..3}.tar", 4),
        (str(tmp_path / "va*" / "{00000..00009}.tar"), 4),
    ):
        assert len(load_splits(source=source, val_split=None).train) == count


def test_load_splits__classes_and_groups_in_json(tmp_path: Path) -> None:
    """JSON beside the pictures tells classes, groups and times."""
    write_shard(tmp_path / "a.tar", [sample(n, who=f"p{n // 4}", day=n) for n in range(12)])
    by_group = load_splits(source=tmp_path / "a.tar", split_by="group", group_column="who")
    assert by_group.class_names == ("a", "b")
    assert by_group.val is not None
    assert len({int(by_group.val.store.key(i)[-8:-4]) // 4 for i in range(len(by_group.val))}) == 1
    by_time = load_splits(source=tmp_path / "a.tar", split_by="time", time_column="day", val_fraction=0.25)
    assert by_time.val is not None
    assert [by_time.val.store.key(i)[-8:-4] for i in range(3)] == ["0009", "0010", "0011"]


PNG = encode(photo(0))
BAD: dict[str, tuple[list[dict[str, bytes]], dict[str, Any], str]] = {
    "no class": ([{"png": PNG, "cls": b"0"}, {"png": PNG}], {}, r"birds/0001 has no file of kind 'cls'; it has 'png'"),
    "empty class": ([{"png": PNG, "cls": b"\n"}], {}, r"0000\.png has no class in column 'cls'"),
    "no picture": ([{"txt": b"x", "cls": b"0"}], {}, "birds/0000 has no picture; it has 'cls', 'txt'"),
    "two pictures": ([{"png": PNG, "seg.png": PNG, "cls": b"0"}], {}, r"several pictures \(png, seg.png\); choose"),
    "no label": ([{"png": PNG}], {}, r"classes is none that we recognise; name it with data\.label_column, one of png"),
    "bad JSON": ([{"png": PNG, "json": b"{"}], {}, r"birds/0000\.json is not JSON"),
    "no object": ([{"png": PNG, "json": b"3"}], {}, r"birds/0000\.json is no JSON object"),
    "unknown key": (
        [{"png": PNG, "json": b'{"labl": 1}'}],
        {"label_column": "lab"},
        "no column 'lab'; did you mean 'labl'",
    ),
    "empty": ([], {}, "these shards are empty"),
    "split column": ([{"png": PNG, "cls": b"0"}], {"split_column": "x"}, "the names of shards tell their split"),
}


@pytest.mark.parametrize("case", BAD)
def test_load_splits__bad_shard_is_one_line(case: str, tmp_path: Path) -> None:
    """Each mistake in a shard is one line that names the sample."""
    samples, options, message = BAD[case]
    write_shard(tmp_path / "a.tar", samples)
    with pytest.raises(RequestError, match=message) as caught:
        load_splits(source=tmp_path / "a.tar", **options)
    assert "\n" not in str(caught.value)


def test_load_splits__shards_that_cannot_be_read(shards: Path) -> None:
    """Missing, compressed, no tar at all, cut short after it was opened, a name twice: one line each."""
    write_shard(shards / "z.tar.gz", [sample(0)], kind="w:gz")
    (shards / "text.tar").write_text("hello")
    for source, message in (
        ("none.tar", "no such tar files"),
        ("z.tar.gz", "is compressed"),
        ("text.tar", "cannot read the shard"),
    ):
        with pytest.raises(RequestError, match=message):
            load_splits(source=shards / source)
    images = load_splits(source=shards / "birds-val-000.tar", val_split=None).train
    data = (shards / "birds-val-000.tar").read_bytes()
    (shards / "birds-val-000.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(RequestError, match=r"birds-val-000\.tar ends too early"):
        images.load(3)
    with pytest.raises(RequestError, match=r"birds-val-000\.tar"):
        load_splits(source=shards / "birds-val-000.tar")
    write_shard(shards / "twice.tar", [sample(0), sample(1)])
    with tarfile.open(shards / "twice.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("birds/0000.cls"))
    with pytest.raises(RequestError, match=r"birds/0000 comes twice"):
        load_splits(source=shards / "twice.tar")


def test_load_splits__weights_in_json(tmp_path: Path) -> None:
    """A key of the JSON beside each picture tells what it weighs."""
    write_shard(tmp_path / "a.tar", [sample(n, importance=n / 2) for n in range(6)])
    train = load_splits(source=tmp_path / "a.tar", val_split=None, weight_column="importance").train
    assert train.weights is not None
    assert train.weights.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
