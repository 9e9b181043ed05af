"""The manifest: what it holds, what changes its hash, what it refuses."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_helpers import write_pictures

from vit_finetune.common.errors import RequestError
from vit_finetune.data import image_set, load_splits
from vit_finetune.data.manifest import manifest_hash, write_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a small data set in split folders."""
    return write_pictures(tmp_path / "root", {"train/a": 2, "train/b": 1, "val/b": 1})


def test_write_manifest__holds_every_picture(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a picture with its hash, each file read once, nothing else left beside the file."""
    reads: list[str] = []
    read = image_set.FileStore.read
    monkeypatch.setattr(
        image_set.FileStore, "read", lambda self, index: (reads.append(self.key(index)), read(self, index))[1]
    )
    path = tmp_path / "run" / "manifest.parquet"
    digest = write_manifest(load_splits(root=root), path)
    rows = pq.read_table(path).to_pylist()
    data = (root / "train/a/1.png").read_bytes()
    assert rows[1] == {
        "split": "train",
        "index": 1,
        "name": "train/a/1.png",
        "label": 0,
        "class_name": "a",
        "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": 24,
        "height": 20,
        "mode": "RGB",
    }
    names = ["train/a/0.png", "train/a/1.png", "train/b/0.png", "val/b/0.png"]
    assert [row["name"] for row in rows] == names
    assert [row["label"] for row in rows] == [0, 0, 1, 1]
    assert sorted(reads) == names
    assert list(path.parent.iterdir()) == [path]
    assert pq.read_schema(path).metadata[b"manifest_hash"].decode() == digest


def test_manifest_hash__notices_every_change(root: Path, tmp_path: Path) -> None:
    """The same wherever the data lies; another for other bytes, name, class or split."""
    original = manifest_hash(load_splits(root=root))
    assert write_manifest(load_splits(root=root), tmp_path / "manifest.parquet") == original

    def changed(name: str, change: object) -> str:
        copy = tmp_path / name
        shutil.copytree(root, copy)
        change(copy)  # type: ignore[operator]
        return manifest_hash(load_splits(root=copy))

    picture = "train/a/1.png"
    assert changed("same", lambda copy: None) == original
    hashes = {
        original,
        changed("bytes", lambda copy: shutil.copy(copy / "train/b/0.png", copy / picture)),
        changed("name", lambda copy: (copy / picture).rename(copy / "train/a/2.png")),
        changed("class", lambda copy: (copy / picture).rename(copy / "train/b/1.png")),
        changed("split", lambda copy: ((copy / "val/a").mkdir(), (copy / picture).rename(copy / "val/a/1.png"))),
        changed("gone", lambda copy: (copy / picture).unlink()),
    }
    assert len(hashes) == 6


def test_write_manifest__names_unreadable_pictures(root: Path, tmp_path: Path) -> None:
    """Every file that is no picture is found before the run starts, and nothing is written."""
    (root / "train/a/0.png").write_bytes(b"")
    (root / "val/b/0.png").write_text("hello")
    with pytest.raises(RequestError, match=r"train/a/0\.png: it is not a picture.*val/b/0\.png: it is not a picture"):
        write_manifest(load_splits(root=root), tmp_path / "manifest.parquet")
    assert not (tmp_path / "manifest.parquet").exists()
    write_pictures(root, {"train/c": 6})
    for index in range(6):
        (root / f"train/c/{index}.png").write_bytes(b"")
    with pytest.raises(RequestError, match=r"; and 3 more$"):
        manifest_hash(load_splits(root=root))
