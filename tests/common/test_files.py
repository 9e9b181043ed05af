"""Files and folders appear whole or not at all, and leave nothing beside them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_file, atomic_folder, sha256_file, write_json, write_text


class PowerCutError(Exception):
    """What interrupts a write in these tests."""


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_atomic_file__appears_at_the_end(tmp_path: Path) -> None:
    """A reader sees nothing before the block has ended, and the whole content after it."""
    target = tmp_path / "deep" / "below" / "figures.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename within one folder is what makes it atomic"
    assert target.read_text() == "whole"
    assert everything(tmp_path) == {"deep", "deep/below", "deep/below/figures.txt"}


def test_atomic_file__interrupted(tmp_path: Path) -> None:
    """A write that fails half-way leaves the older file as it was and no leftovers."""
    target = tmp_path / "figures.txt"
    target.write_text("old")
    with pytest.raises(PowerCutError), atomic_file(target) as temporary:
        temporary.write_text("ne")
        raise PowerCutError
    assert target.read_text() == "old"
    assert everything(tmp_path) == {"figures.txt"}


def test_atomic_file__replaces_by_rename(tmp_path: Path) -> None:
    """An older file is replaced, not overwritten: who has it open, or mapped, keeps reading the old content."""
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        write_text(target, "newer")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"newer"


def test_atomic_folder__appears_at_the_end(tmp_path: Path) -> None:
    """A folder appears under its name with everything in it, readable by others, and nothing is left beside it."""
    target = tmp_path / "runs" / "model"
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert everything(tmp_path) == {"runs", "runs/model", "runs/model/sub", "runs/model/sub/a.txt"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_atomic_folder__interrupted(tmp_path: Path) -> None:
    """A folder whose writing fails never appears, under no name."""
    with pytest.raises(PowerCutError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "a.txt").write_text("a")
        raise PowerCutError
    assert everything(tmp_path) == set()


def test_atomic_folder__replaces_when_told(tmp_path: Path) -> None:
    """With replace, the older folder stays until the new one is whole, and nothing is left beside it."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(PowerCutError), atomic_folder(target, replace=True):
        raise PowerCutError
    assert [path.name for path in target.iterdir()] == ["old"]
    with atomic_folder(target, replace=True) as temporary:
        (temporary / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_atomic_folder__refuses_an_existing_one(tmp_path: Path) -> None:
    """A folder that exists is named and left as it is, even an empty one."""
    target = tmp_path / "model"
    target.mkdir()
    with pytest.raises(RequestError) as error, atomic_folder(target):
        pass
    assert str(error.value) == f"{target} exists already; choose another place or remove it first"
    assert everything(tmp_path) == {"model"}


def test_write_json__round_trip(tmp_path: Path) -> None:
    """Values come back equal; the file is UTF-8 text that ends in a newline."""
    value = {"loss": 0.1, "names": ["Zaunkönig"], "none": None}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_write_json__refuses_what_json_cannot_say(tmp_path: Path, number: float) -> None:
    """NaN and infinity are no JSON: refused, and the older file stays."""
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": number})
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert everything(tmp_path) == {"a.json"}


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_file__equals_hashlib(tmp_path: Path, size: int) -> None:
    """The hash of a file is hashlib's of its bytes, at and around the size of a chunk."""
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
