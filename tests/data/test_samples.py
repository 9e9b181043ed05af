"""Pictures that Python holds become splits: of lists, of torch's data sets, of anything with a length and items."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import encode, photo
from torch.utils.data import Dataset, Subset
from torchvision.datasets import FakeData, ImageFolder

from vit_finetune.common.errors import RequestError
from vit_finetune.data import k_folds, load_splits, splits_from
from vit_finetune.data.manifest import manifest_hash


class Birds(Dataset):
    """Eight pictures of two classes, with counters of what was asked for."""

    classes = ("kauz", "milan")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return photo(index), torch.tensor(index % 2)


def test_splits_from__every_kind_of_picture(tmp_path):
    """PIL images, arrays, paths and bytes are the same picture; names and indices the same class."""
    image = photo(3)
    path = tmp_path / "a.png"
    image.save(path)
    kinds = [image, np.asarray(image), path, str(path), encode(image)]
    splits = splits_from([(kind, "wren") for kind in kinds] + [(photo(4), "kauz")], val_fraction=0)
    assert splits.class_names == ("kauz", "wren")
    assert splits.train.labels.tolist() == [1] * 5 + [0]
    for index in range(5):
        assert np.array_equal(np.asarray(splits.train.load(index)), np.asarray(image))
    assert splits.train.name(4) == "train[4]"
    assert splits.val is None


def test_splits_from__torch_datasets():
    """A torch data set, its Subset and torchvision's kinds work; `classes` names the indices."""
    data = Birds()
    splits = splits_from(Subset(data, range(6)), Subset(data, [6, 7]), class_names=data.classes)
    assert splits.class_names == ("kauz", "milan")
    assert (len(splits.train), len(splits.val)) == (6, 2)
    assert splits_from(data, val_fraction=0).class_names == data.classes
    fake = splits_from(FakeData(size=12, image_size=(3, 8, 8), num_classes=3), val_fraction=0)
    assert set(fake.class_names) <= {"0", "1", "2"}


def test_splits_from__image_folder_agrees_with_our_scanner(tmp_path):
    """torchvision's ImageFolder through Python and the same folder read by us give the same pictures and classes."""
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for index in range(3):
            photo(index).save(tmp_path / label / f"{index}.png")
    theirs = splits_from(ImageFolder(tmp_path), val_fraction=0)
    ours = load_splits(root=tmp_path, val_split=None)
    assert theirs.class_names == ours.class_names
    assert theirs.train.labels.tolist() == ours.train.labels.tolist()
    for index in range(6):
        assert np.array_equal(np.asarray(theirs.train.load(index)), np.asarray(ours.train.load(index)))


def test_splits_from__holds_out_and_says_so():
    """Without val a share of each class is held out, by the seed alone, and the notes say it."""
    samples = [(photo(index), "ab"[index % 2]) for index in range(20)]
    first, again, other = (splits_from(samples, val_fraction=0.2, seed=seed) for seed in (0, 0, 1))
    assert np.bincount(first.val.labels).tolist() == [2, 2]
    names = [{splits.val.name(index) for index in range(4)} for splits in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert any("held out 20%" in note for note in first.notes)
    assert names[0].isdisjoint({first.train.name(index) for index in range(16)})


def test_splits_from__manifest_and_workers():
    """The digest is a function of pixels and classes; the store travels to worker processes."""
    samples = [(photo(index), "ab"[index % 2]) for index in range(6)]
    splits = splits_from(samples, val_fraction=0)
    assert manifest_hash(splits) == manifest_hash(pickle.loads(pickle.dumps(splits)))
    assert manifest_hash(splits) != manifest_hash(splits_from([*samples[:5], (photo(9), "b")], val_fraction=0))


def test_splits_from__lists_of_classes():
    """A list of names or indices, an empty one too, is a row of zeros and ones."""
    samples = [(photo(0), ["cat"]), (photo(1), (1, "cat")), (photo(2), [])]
    splits = splits_from(samples, class_names=["cat", "dog"], val_fraction=0)
    assert splits.train.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
    with pytest.raises(RequestError, match="k_folds needs one class per picture"):
        k_folds(splits, 2)
    with pytest.raises(RequestError, match="val and train disagree on whether a picture has one class or a list"):
        splits_from(samples, val=[(photo(3), "cat")], class_names=["cat", "dog"])


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([], {}, "the training data set is empty"),
        ([photo(0)], {}, r"train\[0\] is a Image; a sample is \(picture, class\)"),
        (
            [(torch.zeros(3, 8, 8), 0)],
            {},
            r"the picture of train\[0\] is a Tensor; give PIL images.*leave the data set",
        ),
        ([(np.zeros((8, 8, 3)), 0)], {}, r"is a float64 array \(8, 8, 3\)"),
        ([(photo(0), 0.5)], {}, r"train\[0\] has the class 0\.5; give a name, an index, or a list of them"),
        ([(photo(0), ["a", "a"])], {}, r"train\[0\] has a class twice"),
        ([(photo(0), [0.5])], {}, "has the class 0.5"),
        ([(photo(0), 2)], {"class_names": ["a", "b"]}, r"train\[0\] has the class 2; the class names are for 0 to 1"),
        ([(photo(0), -1)], {"class_names": ["a", "b"]}, "has the class -1"),
        ([(photo(0), "kautz")], {"class_names": ["kauz", "b"]}, "did you mean 'kauz'"),
        ([(photo(0), "a"), (photo(1), "a")], {}, "only one class, 'a'"),
        (
            [(photo(0), "a"), (photo(1), "b")],
            {"val": [(photo(2), "c")]},
            "classes in val that train does not have: 'c'",
        ),
        ([(photo(0), "a"), (photo(1), "b")], {"val_fraction": 1.0}, "val_fraction is 1.0"),
    ],
)
def test_splits_from__refuses(train, options, message):
    """What is no data set of pictures is one line that names the sample."""
    with pytest.raises(RequestError, match=message):
        splits_from(train, **options)


def test_load_splits__pictures_from_python_are_gone(tmp_path: Path):
    """A run that was given its pictures does not look for a data set called python."""
    with pytest.raises(
        RequestError, match=r"these pictures came from Python; give them again: finetune\(\.\.\., data="
    ):
        load_splits(source="python")


def test_k_folds__of_python_pictures():
    """Folds of a list need no files."""
    splits = splits_from([(photo(index), "ab"[index % 2]) for index in range(6)], val_fraction=0)
    folds = k_folds(splits, 3)
    assert sorted(fold.test.name(index) for fold in folds for index in range(2)) == [f"train[{i}]" for i in range(6)]
