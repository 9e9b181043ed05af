"""Folders become splits with one class map; what is wrong with a folder is said in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_helpers import photo, write_pictures
from hypothesis import given
from hypothesis import strategies as st

from vit_finetune.common.errors import RequestError
from vit_finetune.data import ImageSet, Splits, find_images, load_folder, load_splits
from vit_finetune.data.scan import natural_key, scan_folder


def keys(images: ImageSet | None) -> list[str]:
    """Return the names of the pictures inside their data set."""
    assert images is not None
    return [images.store.key(index) for index in range(len(images))]


def class_of(splits: Splits, images: ImageSet | None) -> list[str]:
    """Return the class name of each picture."""
    assert images is not None
    return [splits.class_names[label] for label in images.labels]


def test_natural_key__orders_numbers_by_value() -> None:
    """1, 2, 10; case and folders do not mix things up."""
    names = ["10", "2", "1", "b/10", "b/9", "a-1", "a/1", "B/2", "img12b", "img2"]
    assert sorted(names, key=natural_key) == ["1", "2", "10", "a/1", "a-1", "B/2", "b/9", "b/10", "img2", "img12b"]


@given(st.lists(st.text(alphabet="aA1²0٣/-. é", max_size=8)))
def test_natural_key__is_a_total_order(names: list[str]) -> None:
    """Any names can be compared, and the order does not depend on where they started."""
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


def test_load_splits__split_folders(tmp_path: Path) -> None:
    """train, val and test share one map in natural order; a class that val lacks keeps its index."""
    write_pictures(tmp_path, {"train/10": 2, "train/2": 12, "train/1": 1, "val/10": 1, "val/1": 2, "test/2": 3})
    splits = load_splits(root=tmp_path, test_split="test")
    assert splits.class_names == ("1", "2", "10")
    assert class_of(splits, splits.train) == ["1"] + ["2"] * 12 + ["10"] * 2
    assert class_of(splits, splits.val) == ["1", "1", "10"]
    assert splits.val is not None
    assert splits.val.labels.tolist() == [0, 0, 2]
    assert class_of(splits, splits.test) == ["2"] * 3
    assert keys(splits.train)[1:12:10] == ["train/2/0.png", "train/2/10.png"]
    assert splits.train.name(0) == str(tmp_path / "train/1/0.png")
    assert splits.train.labels.dtype == np.int64
    assert np.array_equal(np.asarray(splits.train.load(0)), np.asarray(photo(2000)))
    assert [name for name, _ in splits.named()] == ["train", "val", "test"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_load_splits__finds_the_usual_names_of_val(name: str, tmp_path: Path) -> None:
    """val may be called val, valid or validation; test is left alone, and said so, unless it is asked for."""
    write_pictures(tmp_path, {"train/a": 1, "train/b": 1, f"{name}/a": 1, "test/a": 1})
    splits = load_splits(root=tmp_path)
    assert keys(splits.val) == [f"{name}/a/0.png"]
    assert splits.test is None
    assert splits.notes == (f"{tmp_path}: not read: 'test'",)


def test_load_splits__nested_classes_stay_apart(tmp_path: Path) -> None:
    """A class is the whole path below the split, so equal last names do not merge."""
    write_pictures(tmp_path, {"train/x/small": 2, "train/y/small": 2, "train/x/big": 1, "val/y/small": 1})
    splits = load_splits(root=tmp_path)
    assert splits.class_names == ("x/big", "x/small", "y/small")
    assert class_of(splits, splits.val) == ["y/small"]


def test_load_splits__a_class_may_be_called_train(tmp_path: Path) -> None:
    """`train` with pictures directly inside is a class beside others."""
    write_pictures(tmp_path, {"train": 3, "car": 3})
    assert load_splits(root=tmp_path).class_names == ("car", "train")


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=5).filter(lambda counts: max(counts) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_hold_out__keeps_its_promises(counts: list[int], fraction: float, seed: int) -> None:
    """Disjoint and complete; every class keeps a training picture, and validates one if it has two."""
    from vit_finetune.data.image_set import FileStore
    from vit_finetune.data.parts import Part, Parts
    from vit_finetune.data.splitting import hold_out

    names = tuple(f"{label}/{index}.png" for label, count in enumerate(counts) for index in range(count))
    part = Part(FileStore(Path("root"), names), [name.partition("/")[0] for name in names])
    parts = hold_out(Parts(part, None, None, ()), fraction, seed)
    assert parts.val is not None
    train, val = ([p.store.key(i) for i in range(len(p.store))] for p in (parts.train, parts.val))
    assert sorted(train + val) == sorted(names)
    for label, count in enumerate(counts):
        in_val = sum(name.startswith(f"{label}/") for name in val)
        assert (in_val >= 1) == (count >= 2)
        assert in_val <= count - 1
        assert abs(in_val - fraction * count) <= 1
    assert [name.partition("/")[0] for name in val] == list(parts.val.classes)


def test_load_splits__held_out_split_depends_on_seed_and_names_only(tmp_path: Path) -> None:
    """The same wherever the folder lies, another with another seed, untouched by a new class."""
    counts = {"a": 20, "b": 10, "c": 1}
    here, there = write_pictures(tmp_path / "here", counts), write_pictures(tmp_path / "there", counts)
    first = load_splits(root=here)
    assert len(first.train) == 25
    assert class_of(first, first.val) == ["a"] * 4 + ["b"] * 2
    assert keys(load_splits(root=there).val) == keys(first.val)
    assert keys(load_splits(root=here, seed=1).val) != keys(first.val)
    write_pictures(there, {"d": 4})
    assert keys(load_splits(root=there).val)[:6] == keys(first.val)
    assert first.notes == (
        "held out 20% of each class for validation: 6 of 31 pictures",
        "classes with a single picture are not validated: 'c'",
    )


def test_load_splits__no_validation_on_request(tmp_path: Path) -> None:
    """val_split None, or nothing to hold out, trains on everything."""
    write_pictures(tmp_path, {"a": 3, "b": 3})
    for splits in (load_splits(root=tmp_path, val_split=None), load_splits(root=tmp_path, val_fraction=0.0)):
        assert splits.val is None
        assert len(splits.train) == 6


def test_load_splits__train_without_val_holds_out(tmp_path: Path) -> None:
    """A train folder alone is split, with a note; its test folder still serves."""
    write_pictures(tmp_path, {"train/a": 5, "train/b": 5, "test/a": 1})
    splits = load_splits(root=tmp_path, test_split="test")
    assert (len(splits.train), splits.val and len(splits.val), splits.test and len(splits.test)) == (8, 2, 1)


def test_load_splits__counts_what_it_leaves_out(tmp_path: Path) -> None:
    """Hidden files, other files and links back to a folder above are left out, counted and told."""
    write_pictures(tmp_path, {"a": 2, "b": 2, ".cache/x": 1})
    (tmp_path / "a" / "._0.png").write_bytes(b"mac")
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "b" / "Thumbs.db").write_text("hello")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    splits = load_splits(root=tmp_path, val_split=None)
    assert len(splits.train) == 4
    assert splits.notes == (f"{tmp_path}: left out 2 not pictures, 2 hidden, 1 links back to a folder above",)


def test_scan_folder__follows_links(tmp_path: Path) -> None:
    """A linked folder counts as a folder, once for each place it is linked from."""
    write_pictures(tmp_path / "store", {"x": 1})
    (tmp_path / "root" / "a").mkdir(parents=True)
    for name in ("p", "q"):
        (tmp_path / "root" / "a" / name).symlink_to(tmp_path / "store" / "x", target_is_directory=True)
    assert scan_folder(tmp_path / "root").names == ("a/p/0.png", "a/q/0.png")


def test_load_splits__suffix_in_any_case_and_composed_names(tmp_path: Path) -> None:
    """`.PNG` is a picture; a class written in two Unicode forms is one class."""
    write_pictures(tmp_path, {"train/caf\u00e9": 1, "train/b": 1, "val/cafe\u0301": 1})
    photo(9).save(tmp_path / "train" / "b" / "X.PNG")
    splits = load_splits(root=tmp_path)
    assert splits.class_names == ("b", "caf\u00e9")
    assert (len(splits.train), splits.val and splits.val.labels.tolist()) == (3, [1])


BAD_FOLDERS: dict[str, tuple[dict[str, int], dict[str, object], str]] = {
    "class only in val": ({"train/cat": 1, "train/dog": 1, "val/cart": 1}, {}, "classes in val .*'cart'.*'cat'"),
    "class only in test": (
        {"train/a": 1, "train/b": 1, "val/a": 1, "test/z": 1},
        {"test_split": "test"},
        "in test .*'z'",
    ),
    "empty class": ({"train/a": 1, "train/b": 1, "train/c": 0, "val/a": 1}, {}, "without pictures: 'c'"),
    "empty class in val": ({"train/a": 1, "train/b": 1, "val/b": 0, "val/a": 1}, {}, "without pictures: 'b'"),
    "empty class, no splits": ({"a": 1, "b": 1, "x/c": 0}, {}, "without pictures: 'x/c'"),
    "nothing": ({}, {}, r"no pictures below .*looked for .*train/CLASS.*\.jpg"),
    "only empty classes": ({"a": 0, "b": 0}, {}, "no pictures below"),
    "one class": ({"a": 3}, {}, "only one class, 'a'"),
    "flat splits": ({"train": 2, "val": 2}, {}, "no folder train/ with class folders.*looked for"),
    "splits without train": ({"val/a": 2, "test/a": 2}, {}, "no folder train/ with class folders.*'test', 'val'"),
    "one level too high": ({"pets/train/a": 1, "pets/train/b": 1}, {}, r"did you mean .*/pets\?"),
    "loose pictures": ({"a": 1, "b": 1, ".": 2}, {}, r"2 pictures outside of any class folder, the first is 0\.png"),
    "unknown train": ({"training/a": 1, "training/b": 1}, {"train_split": "trainin"}, "did you mean 'training'"),
    "unknown val": ({"train/a": 1, "train/b": 1}, {"val_split": "dev"}, "no folder dev"),
    "unknown test": ({"train/a": 1, "train/b": 1, "tests/a": 1}, {"test_split": "test"}, "did you mean 'tests'"),
    "single pictures": ({"a": 1, "b": 1}, {}, "every class has a single picture"),
    "fraction": ({"a": 2, "b": 2}, {"val_fraction": 1.0}, "val_fraction is 1.0"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_load_splits__bad_folder_is_one_line(case: str, tmp_path: Path) -> None:
    """Each mistake gives one line that names what is wrong."""
    counts, options, message = BAD_FOLDERS[case]
    write_pictures(tmp_path, counts)
    with pytest.raises(RequestError, match=message) as caught:
        load_splits(root=tmp_path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_load_splits__missing_root_suggests_its_neighbour(tmp_path: Path) -> None:
    """A folder that is not there, a file, both places or none: one line each."""
    write_pictures(tmp_path, {"photos/a": 1})
    with pytest.raises(RequestError, match="does not exist; did you mean 'photos'"):
        load_splits(root=tmp_path / "photo")
    with pytest.raises(RequestError, match="is a file"):
        load_splits(root=tmp_path / "photos" / "a" / "0.png")
    for places in ({}, {"root": tmp_path, "source": "x"}):
        with pytest.raises(RequestError, match=r"either data\.root"):
            load_splits(**places)  # type: ignore[arg-type]


def test_load_folder__uses_the_given_class_map(tmp_path: Path) -> None:
    """A folder is labelled by the model's map, may lack classes, and must not have others."""
    write_pictures(tmp_path, {"cat": 2, "zebra": 1})
    images = load_folder(tmp_path, ("zebra", "dog", "cat"))
    assert images.labels.tolist() == [2, 2, 0]
    with pytest.raises(RequestError, match="does not know: 'zebra'; did you mean 'zebras'"):
        load_folder(tmp_path, ("cat", "zebras"))
    with pytest.raises(RequestError, match="does not exist"):
        load_folder(tmp_path / "nothing", ("cat", "dog"))


def test_find_images__files_and_folders(tmp_path: Path) -> None:
    """Folders recursively in natural order, named files whatever their ending, the order of the arguments kept."""
    write_pictures(tmp_path, {"b/10": 1, "b/9": 1, "empty": 0})
    (tmp_path / "odd.data").write_bytes(b"")
    found = find_images([tmp_path / "odd.data", str(tmp_path / "b")])
    assert found == [tmp_path / "odd.data", tmp_path / "b/9/0.png", tmp_path / "b/10/0.png"]
    with pytest.raises(RequestError, match="no pictures below"):
        find_images([tmp_path / "empty"])
    with pytest.raises(RequestError, match="does not exist"):
        find_images([tmp_path / "nothing.png"])


def test_scan_folder__names_a_folder_it_may_not_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that the system will not list is an error, not an empty class."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(RequestError, match=r"cannot list the folder .*: Permission denied"):
        scan_folder(tmp_path)


def test_image_set__is_picklable_and_checks_its_labels(tmp_path: Path) -> None:
    """A set travels to another process; a wrong number of labels is refused; unlabelled paths have -1."""
    paths = find_images([write_pictures(tmp_path, {"a": 2})])
    images = ImageSet.from_paths(paths)
    copy = pickle.loads(pickle.dumps(images))
    assert [copy.name(index) for index in range(len(copy))] == [str(path) for path in paths]
    assert copy.labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="labels have the shape"):
        ImageSet(images.store, np.zeros(3, dtype=np.int64))
    paths[1].unlink()
    with pytest.raises(RequestError, match=r"1\.png: No such file"):
        images.load(1)


def test_load_splits__the_test_split_is_never_validated_on(tmp_path: Path) -> None:
    """val/ named as the test split leaves no val folder: a share of train is held out, and val/ is the test split."""
    write_pictures(tmp_path, {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    splits = load_splits(root=tmp_path, test_split="val")
    assert set(keys(splits.test)) == {"val/a/0.png", "val/a/1.png", "val/b/0.png", "val/b/1.png"}
    assert all(key.startswith("train/") for key in keys(splits.val))
    assert len(keys(splits.train)) == 8
    with pytest.raises(RequestError, match="both 'dev'; a test split selects nothing"):
        load_splits(root=tmp_path, val_split="dev", test_split="dev")
