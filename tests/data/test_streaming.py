"""Streaming: the same pictures, splits and classes as the table read whole, each once an epoch, little fetched."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encode, photo
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.data import ImageSet, load_splits, streaming
from vit_finetune.data.manifest import manifest_hash, split_digests, write_manifest
from vit_finetune.data.order import BLOCKS_TOGETHER, block_order

TESTS = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tables and row groups out of the user's cache, and forget those of other tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    streaming._block.cache_clear()


def write_table(root: Path, *, files: int = 2, groups: int = 3, size: int = 4, noise: int = 0) -> Path:
    """Write train files of `groups` row groups of `size` pictures each, and a val file of one group."""
    (root / "data").mkdir(parents=True)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"]), "who": datasets.Value("string")}
    )
    for number in range(files + 1):
        count = groups * size if number < files else size
        first = number * groups * size
        rows = {
            "image": [{"bytes": encode(photo(n)) + bytes(noise), "path": None} for n in range(first, first + count)],
            "label": [n % 2 for n in range(first, first + count)],
            "who": [f"p{n // 3}" for n in range(first, first + count)],
        }
        table = datasets.Dataset.from_dict(rows, features=features).data.table
        name = f"train-{number:05d}-of-{files:05d}" if number < files else "val-00000-of-00001"
        pq.write_table(table, root / "data" / f"{name}.parquet", row_group_size=size, compression="none")
    return root


def names(images: ImageSet | None) -> list[str]:
    assert images is not None
    return [images.store.key(index) for index in range(len(images))]


def test_load_splits__a_stream_is_the_table(tmp_path: Path) -> None:
    """Names, classes in their declared order, labels and pixels agree with the table that `datasets` reads whole."""
    root = write_table(tmp_path / "table")
    streamed, whole = (load_splits(source=root / "data", streaming=flag) for flag in (True, False))
    assert streamed.class_names == whole.class_names == ("b", "a")
    for (split, ours), (_, theirs) in zip(streamed.named(), whole.named(), strict=True):
        assert names(ours) == names(theirs)
        assert np.array_equal(ours.labels, theirs.labels)
        for index in np.random.default_rng(0).permutation(len(ours)).tolist():
            assert ours.store.read(index) == theirs.store.read(index), split
    picked = pickle.loads(pickle.dumps(streamed.train.store.take(np.array([23, 0]))))
    assert picked.read(0) == streamed.train.store.read(23)
    assert streamed.notes[0].startswith(f"{root / 'data'}: streamed; up to 8 GB of row groups are kept in ")


def test_load_splits__what_is_held_out_of_a_stream(tmp_path: Path) -> None:
    """The seed holds the same rows out as of the whole table, by class and by group; groups stay together."""
    source = write_table(tmp_path / "table") / "data" / "train-00000-of-00002.parquet"
    for options in ({}, {"split_by": "group", "group_column": "who"}):
        streamed, whole = (load_splits(source=source, streaming=flag, **options) for flag in (True, False))
        assert names(streamed.val) == names(whole.val) != []


def test_manifest__of_a_stream(tmp_path: Path) -> None:
    """The manifest is written without a fetched picture, and changes when a file does."""
    root = write_table(tmp_path / "table")
    splits = load_splits(source=root / "data", streaming=True)
    digest = write_manifest(splits, tmp_path / "manifest.parquet")
    assert not (tmp_path / "cache" / "vit_finetune_streams").exists()
    assert digest == manifest_hash(load_splits(source=root / "data", streaming=True))
    before = split_digests(tmp_path / "manifest.parquet")
    (root / "data" / "train-00000-of-00002.parquet").touch()
    again = load_splits(source=root / "data", streaming=True)
    assert write_manifest(again, tmp_path / "manifest.parquet") != digest
    after = split_digests(tmp_path / "manifest.parquet")
    assert (after["train"] != before["train"], after["val"] == before["val"]) == (True, True)


def test_stream__keeps_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups used longest ago go when the folder is full, and are fetched again when they are asked for."""
    images = load_splits(source=write_table(tmp_path / "table", noise=10_000) / "data", streaming=True).train
    monkeypatch.setattr(streaming, "_MAX_BYTES_KEPT", 130_000)  # three groups of four times 10 kB
    first = images.store.read(0)
    for index in range(len(images)):
        images.store.read(index)
        kept = list((tmp_path / "cache" / "vit_finetune_streams").glob("*.arrow"))
        assert len(kept) <= 3
    streaming._block.cache_clear()
    assert images.store.read(0) == first


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None)
def test_block_order__visits_all_and_few_at_a_time(blocks: list[int], seed: int, epoch: int) -> None:
    """Each sample once; a block is done within a window of at most as many blocks as are held together."""
    order = block_order(seed, epoch, np.array(blocks, dtype=np.int64))
    assert sorted(order.tolist()) == list(range(len(blocks)))
    visited = [blocks[index] for index in order]
    windows: list[set[int]] = [set()]
    for block in visited:
        if block not in windows[-1] and len(windows[-1]) == BLOCKS_TOGETHER:
            windows.append(set())
        windows[-1].add(block)
    assert sum(map(len, windows)) == len(set(blocks))


def test_block_order__mixes_and_changes() -> None:
    """Neighbours in the order are of different blocks, and seed and epoch give other orders."""
    blocks = np.repeat(np.arange(40), 25)
    orders = [block_order(seed, epoch, blocks) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert (np.diff(blocks[orders[0]]) == 0).mean() < 2 / BLOCKS_TOGETHER


def test_load_splits__what_cannot_be_streamed(tmp_path: Path) -> None:
    """Folders, other kinds of data, a missing column, a broken file, a file that went away: one line each."""
    root = write_table(tmp_path / "table")
    with pytest.raises(RequestError, match="data.streaming is for a data.source of parquet"):
        load_splits(root=root, streaming=True)
    with pytest.raises(RequestError, match="no column 'labl'; did you mean 'label'"):
        load_splits(source=root / "data", streaming=True, label_column="labl")
    datasets.Dataset.from_dict({"label": [0, 1]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match="is a saved data set, and only parquet is streamed"):
        load_splits(source=tmp_path / "saved", streaming=True)
    images = load_splits(source=root / "data", streaming=True).train
    for path in (root / "data").iterdir():
        path.unlink()
    with pytest.raises(WorkError, match=r"cannot fetch .*train-00000-of-00002\.parquet"):
        images.load(0)
    (root / "data" / "train.parquet").write_bytes(b"nothing")
    with pytest.raises(WorkError, match=r"cannot fetch .*train\.parquet"):
        load_splits(source=root / "data", streaming=True)
    table = pa.table({"image": pa.array([None, b"x"], pa.binary()), "label": ["a", "b"]})
    pq.write_table(table, root / "data" / "train.parquet")
    with pytest.raises(RequestError, match="train#0 has no picture inside"):
        load_splits(source=root / "data", streaming=True, val_split=None).train.load(0)


RANK = """
import json, sys
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data import load_splits
from vit_finetune.data.loader import train_batches
from vit_finetune.data.transforms import build_eval_transform
rank = int(sys.argv[1])
images = load_splits(source="someone/birds", streaming=True).train
steps = train_batches(
    images, build_eval_transform(PreprocessSpec(input_size=(3, 8, 8))), seed=0, global_batch_size=8,
    per_device_batch_size=4, start_step=0, num_steps=2 * len(images) // 8, rank=rank, world_size=2,
)
seen = [[batch.indices.tolist(), batch.images.mean(dim=(1, 2, 3)).tolist()] for step in steps for batch in step]
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_train_batches__the_hub_under_two_ranks(tmp_path: Path) -> None:
    """From a server that speaks the Hub's API two processes see each picture once an epoch, fetched once for both."""
    from vit_finetune.common.preprocess import PreprocessSpec
    from vit_finetune.data.transforms import build_eval_transform

    root = write_table(tmp_path / "hub", files=2, groups=6, noise=30_000)
    command = [sys.executable, str(TESTS / "hub_server.py"), str(root)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        variables = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "home")}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
            )
            for rank in range(2)
        ]
        told: list[Any] = [json.loads(rank.communicate(timeout=240)[0].splitlines()[-1]) for rank in ranks]
    finally:
        server.terminate()
        sent = [line.split() for line in server.stdout.read().splitlines()]
    for epoch in range(2):
        visited = [index for rank in told for step in range(6) for index in rank[6 * epoch + step][0]]
        assert sorted(visited) == list(range(48))
    transform = build_eval_transform(PreprocessSpec(input_size=(3, 8, 8)))
    for rank in told:
        for indices, means in rank:
            wanted = [float(transform(photo(index)).mean()) for index in indices]
            assert np.allclose(means, wanted, atol=1e-6)
    size = sum(path.stat().st_size for path in (root / "data").glob("train*"))
    fetched = sum(int(last) - int(first) + 1 for name, first, last in sent if "train" in name)
    assert (
        fetched < 1.5 * size
    )  # two ranks, two epochs, and each row group went over the wire once; the rest are footers
