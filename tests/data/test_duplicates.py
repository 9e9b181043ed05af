"""Copies of a picture are held out together: planted ones, with groups of the data, whatever the order of the list."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_helpers import photo, write_pictures
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.data import ImageSet, Splits, k_folds, load_splits
from vit_finetune.data.manifest import write_manifest

COUNT = 24
SETS = 6  # of pictures with three copies each


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two classes of 24 pictures; the first six of each are there again scaled, as JPEG, and byte by byte."""
    root = write_pictures(tmp_path_factory.mktemp("copies"), {"cat": 0, "dog": 0})
    for number, name in enumerate(("cat", "dog")):
        for index in range(COUNT):
            image = photo(1000 * number + index, 120, 100)
            image.save(root / name / f"{index}.png")
            if index < SETS:
                image.resize((90, 75), Image.Resampling.BICUBIC).save(root / name / f"{index}_scaled.png")
                image.save(root / name / f"{index}_again.jpg", quality=85)
                (root / name / f"{index}_same.png").write_bytes((root / name / f"{index}.png").read_bytes())
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path / "cache"))


def originals(images: ImageSet | None) -> set[str]:
    """Return what the pictures of a split show."""
    assert images is not None
    keys = (images.store.key(index) for index in range(len(images)))
    return {key.partition(".")[0].partition("_")[0] for key in keys}


def parted(splits: Splits) -> set[str]:
    """Return what is shown in more than one split."""
    seen = [originals(images) for _, images in splits.named()]
    return {name for number, names in enumerate(seen) for other in seen[:number] for name in names & other}


@pytest.mark.parametrize("split_by", ["stratified", "random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_load_splits__copies_stay_together(root: Path, split_by: str, seed: int) -> None:
    """Scaled, recompressed and equal copies are never parted when asked, at the shares asked for; else they are."""
    options = {"root": root, "split_by": split_by, "seed": seed, "val_fraction": 0.25, "test_fraction": 0.25}
    plain, kept = load_splits(**options), load_splits(**options, keep_duplicates_together=True)
    assert parted(plain)
    assert not parted(kept)
    assert any("48 of 84 training pictures have copies: 12 sets" in note for note in kept.notes)
    total = sum(len(images) for _, images in kept.named())
    for _, images in kept.named()[1:]:
        assert abs(len(images) / total - 0.25) < 0.06


def test_load_splits__copies_join_groups(root: Path, tmp_path: Path) -> None:
    """Groups that share a copy are held out as one; groups alone part copies."""
    names = sorted(f"{path.parent.name}/{path.name}" for path in root.rglob("*.*g"))
    rows = [f"{name},{name.partition('/')[0]},{name.partition('.')[0].replace('again', 'same')}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,person", *rows]))
    options = {"root": root, "source": tmp_path / "list.csv", "split_by": "group", "group_column": "person"}
    assert parted(load_splits(**options, seed=1))
    joined = load_splits(**options, seed=1, keep_duplicates_together=True)
    assert not parted(joined)
    assert set(joined.train.groups or ()) | set(joined.val.groups or () if joined.val else ()) == {
        f"{name}/{index}" for name in ("cat", "dog") for index in range(COUNT)
    }


def test_load_splits__copies_do_not_depend_on_the_order_of_a_list(root: Path, tmp_path: Path) -> None:
    """A list forwards and backwards has the same split, which its manifest records and k_folds keeps to."""
    names = sorted(f"{path.parent.name}/{path.name}" for path in root.rglob("*.*g"))
    found = []
    for number, order in enumerate((names, names[::-1])):
        source = tmp_path / f"{number}.csv"
        source.write_text("\n".join(["path,label", *(f"{name},{name.partition('/')[0]}" for name in order)]))
        found.append(load_splits(root=root, source=source, keep_duplicates_together=True))
    assert originals(found[0].val) == originals(found[1].val)
    write_manifest(found[0], tmp_path / "manifest.parquet")
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    assert {row["group"] for row in rows if row["name"].startswith("dog/3")} == {"dog/3.png"}
    assert all(not parted(fold) for fold in k_folds(found[0], 3))


def test_load_splits__copies_are_known_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run or a check has looked at is not decoded again."""
    first = load_splits(root=root, keep_duplicates_together=True)
    monkeypatch.setattr("vit_finetune.data.audit.facts._look", None)
    assert originals(load_splits(root=root, keep_duplicates_together=True).val) == originals(first.val)


def test_load_splits__copies_and_time(root: Path) -> None:
    """Copies may be of different times, so the latest pictures cannot keep them."""
    with pytest.raises(RequestError, match="does not go with data.split_by time"):
        load_splits(source=root / "a.csv", split_by="time", time_column="t", keep_duplicates_together=True)
