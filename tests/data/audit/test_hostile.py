"""Files and names that were made to do harm get one clear line each; nothing hangs, nothing grows with the square."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from faulty_pictures import FAULTS, HTML, SVG, clean, noise, png, save, text_bomb

from vit_finetune.common.errors import RequestError
from vit_finetune.data import load_splits
from vit_finetune.data.audit.copies import near_pairs
from vit_finetune.data.audit.facts import Pace, PictureFacts, read_facts
from vit_finetune.data.audit.findings import found, printable
from vit_finetune.data.audit.folders import check_folders
from vit_finetune.data.audit.memo import Memo
from vit_finetune.data.image_set import ImageSet
from vit_finetune.data.scan import scan_folder


def facts_of(path: Path) -> PictureFacts:
    """Look at one file."""
    return read_facts(ImageSet.from_paths([path]), pixels=True, memo=Memo(None), pace=Pace())[0]


@pytest.mark.parametrize(
    ("data", "fault", "reason"),
    [
        (HTML, "not_a_picture", "it looks like HTML"),
        (b"\xef\xbb\xbf\n <html>", "not_a_picture", "it looks like HTML"),
        (SVG, "not_a_picture", "it looks like SVG"),
        (b"%PDF-1.7", "not_a_picture", "it looks like PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_a_picture", "it looks like a Git LFS pointer"),
        (bytes(range(256)), "not_a_picture", "no format that Pillow knows"),
        (png(60_000, 60_000), "bomb", "could be decompression bomb DOS attack"),
        (png(1000, 1000), "damaged", "image file is truncated"),
        (png(0, 10), "damaged", ""),
    ],
)
def test_facts__one_clear_line(tmp_path: Path, data: bytes, fault: str, reason: str) -> None:
    """What is named .jpg and isn't, pictures that claim what they have not, and bombs: a code and one line."""
    (tmp_path / "a.jpg").write_bytes(data)
    fact = facts_of(tmp_path / "a.jpg")
    assert fact.fault == fault or (data == png(0, 10) and fact.fault == "not_a_picture")
    assert reason in fact.reason and fact.reason and "\n" not in fact.reason


def test_facts__a_comment_that_unpacks_to_100_mb_is_not_unpacked(tmp_path: Path) -> None:
    """A zip bomb inside of a PNG's comment is refused before it takes the memory."""
    (tmp_path / "a.png").write_bytes(text_bomb())
    tracemalloc.start()
    fact = facts_of(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fact.fault == "damaged" and "too large" in fact.reason
    assert peak < 20_000_000


def test_facts__a_pipe_is_not_opened(tmp_path: Path) -> None:
    """A named pipe, which nobody writes to, and a link to itself don't hang."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert facts_of(tmp_path / "pipe.jpg").reason == "it is no regular file"
    assert facts_of(tmp_path / "self.jpg").reason == "Too many levels of symbolic links"


def test_facts__no_permission_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without the right to read it is told so, and read as soon as the right is there."""
    save(noise(1), tmp_path / "a.png")
    memo = tmp_path / "memo.jsonl"
    pictures = ImageSet.from_paths([tmp_path / "a.png"])

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        (fact,) = read_facts(pictures, pixels=False, memo=Memo(None), pace=Pace())
        (fact,) = read_facts(pictures, pixels=False, memo=Memo(memo), pace=Pace())
    assert (fact.fault, fact.reason) == ("unreadable", "Permission denied")
    (fact,) = read_facts(pictures, pixels=False, memo=Memo(memo), pace=Pace())
    assert fact.fault == ""


def test_memo__half_a_line_and_old_versions_are_left_out(tmp_path: Path) -> None:
    """What a killed check wrote of a line is not taken for knowledge, and what decoded counts for what did not."""
    path = tmp_path / "memo.jsonl"
    Memo(path).add({"a 1 1": {"mode": "RGB"}}, pixels=True)
    Memo(path).add({"a 1 1": {"mode": "L"}, "": {"mode": "P"}}, pixels=False)
    with path.open("ab") as file:
        file.write(b'[0, "old 1 1", true, {}]\n[1, "torn 1 1", tr')
    memo = Memo(path)
    assert memo.get("a 1 1", pixels=True) == memo.get("a 1 1", pixels=False) == {"mode": "RGB"}
    assert memo.get("", pixels=False) is memo.get("old 1 1", pixels=False) is memo.get("torn 1 1", pixels=False) is None


def test_folders__no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed is a finding, and the others are looked at all the same."""
    root = clean(tmp_path / "set")
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).endswith("train/red"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    folders = check_folders(root, train_split="train", val_split="val", test_split=None)
    (finding,) = folders.findings
    assert (finding.code, finding.examples[0].name, finding.examples[0].note) == (
        *("unlisted_folder", "train/red", "Permission denied"),
    )
    assert folders.splits is not None and len(folders.splits.train) == 18
    with pytest.raises(RequestError, match="cannot list the folder .*red: Permission denied"):
        load_splits(root=root)


def test_folders__names(tmp_path: Path) -> None:
    """Line breaks, right-to-left marks, emoji, and a path of 300 letters are names like others, told on one line."""
    root = clean(tmp_path / "set")
    names = [
        "a\nb.png",
        "\u202egnp.png",
        "snow \u2603 \U0001f431.png",
        "x" * 250 + ".png",
        "y" * 100 + "/" + "z" * 195 + ".png",
    ]
    for number, name in enumerate(names):
        save(noise(50_000 + number), root / "train/red" / name)
        save(noise(60_000 + number), root / "val/red" / name)
    (root / "train/red/self").symlink_to("self")
    folders = check_folders(root, train_split="train", val_split="val", test_split=None)
    assert [finding.code for finding in folders.findings] == ["extra_files"]
    splits = load_splits(root=root)
    facts = read_facts(splits.train, pixels=True, memo=Memo(tmp_path / "memo"), pace=Pace())
    assert len(facts) == 27 + len(names) and not any(fact.fault for fact in facts)
    assert [
        fact.fault for fact in read_facts(splits.train, pixels=True, memo=Memo(tmp_path / "memo"), pace=Pace())
    ] == [""] * len(facts)
    assert printable("a\nb\x1b[31m\u202e\udcff é \u2603") == "a\\nb\\x1b[31m\\u202e\\udcff é \u2603"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_folders__impossible_folder(name: str) -> None:
    """A folder's name that no file system takes is a wrong request in one line."""
    with pytest.raises(RequestError, match="cannot list the data folder"):
        check_folders(Path(name), train_split="train", val_split="val", test_split=None)


def test_scan__many_files_take_linear_memory(tmp_path: Path) -> None:
    """Four times the files take no more memory a file."""
    for count in (6000, 24_000):
        folder = tmp_path / str(count) / "class"
        folder.mkdir(parents=True)
        for index in range(count):
            os.close(os.open(folder / f"{index}.png", os.O_CREAT | os.O_WRONLY))
        tracemalloc.start()
        assert len(scan_folder(folder.parent).names) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1500 * count  # about 1,000 bytes were measured


def test_near_pairs__memory_is_linear() -> None:
    """20,000 pictures, a thousand of them alike, are compared without a table of all pairs."""
    thumbs = np.random.default_rng(0).integers(0, 256, (20_000, 16, 16), dtype=np.uint8)
    thumbs[:1000] = thumbs[0]
    tracemalloc.start()
    pairs = near_pairs(thumbs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs.tolist() == [[0, index] for index in range(1, 1000)]
    assert peak < 150_000_000  # all pairs, one byte each, are 400 MB


def test_found__keeps_a_thousand_examples_and_counts_all() -> None:
    """A finding of 10**5 cases stays small."""
    (finding,) = found("rotated", (_example() for _ in range(100_000)))
    assert (finding.how_many, len(finding.examples)) == (100_000, 1000)


def _example() -> object:
    from vit_finetune.data.audit.findings import Example

    return Example("a")


def test_faults__script_prints_its_table(tmp_path: Path) -> None:
    """The faults' script stands alone, for people who want the folder."""
    import subprocess
    import sys

    script = Path(__file__).parents[2] / "faulty_pictures.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "set")], capture_output=True, text=True, check=True
    )
    assert {line.split()[0] for line in io.StringIO(done.stdout)} == set(FAULTS)
