"""Every fault of a data set is found under its own code, as often as it is there, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from faulty_pictures import FAULTS, clean, faulty, noise, save
from PIL import Image
from run_helpers import tiny_config

from vit_finetune import Config, RequestError
from vit_finetune.data.audit.findings import KINDS
from vit_finetune.preflight.looking import Look, look


@pytest.fixture(autouse=True)
def _own_memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test know what another has seen."""
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path / "cache"))
    yield


def seen(root: Path, *, pixels: bool = True, **data: object) -> Look:
    """Look at a folder."""
    config = Config.load(tiny_config(root, root.parent / "run", data=data))
    return look(config, pixels=pixels, say=lambda line: None)


def counts(found: Look) -> dict[str, int]:
    """Return how many cases of each fault were found."""
    assert len({finding.code for finding in found.findings}) == len(found.findings)
    return {finding.code: finding.how_many for finding in found.findings}


@pytest.mark.parametrize("pixels", [False, True])
def test_look__a_clean_set_has_no_finding(tmp_path: Path, pixels: bool) -> None:
    """No false alarm, at either depth."""
    found = seen(clean(tmp_path / "set"), pixels=pixels)
    assert counts(found) == {}
    assert {split: len(facts) for split, facts in found.facts.items()} == {"train": 27, "val": 12}


@pytest.mark.parametrize("pixels", [False, True])
def test_look__pictures_of_many_channels_are_no_fault(tmp_path: Path, pixels: bool) -> None:
    """A TIFF that Pillow does not know, and training reads, is a picture; one that ends early is damaged."""
    root = clean(tmp_path / "set")
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 5), dtype=np.uint8)
    for index in range(2):
        path = root / "train" / "blue" / f"wide{index}.tif"
        tifffile.imwrite(path, values + index, photometric="minisblack", planarconfig="contig")
    assert counts(seen(root, pixels=pixels)) == {"colour_modes": 2}  # beside RGB, which is worth a word
    whole = (root / "train" / "blue" / "wide1.tif").read_bytes()
    (root / "train" / "blue" / "wide1.tif").write_bytes(whole[:200])
    assert any(finding.code in ("damaged", "not_a_picture") for finding in seen(root, pixels=pixels).findings)


def test_look__a_list_beside_a_root(tmp_path: Path) -> None:
    """The pictures of a list are looked at, not the folder that its paths start from."""
    root = clean(tmp_path / "set")
    save(noise(1), root / "stray.png")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*/*/*.png"))
    rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    found = seen(root, source=str(tmp_path / "list.csv"))
    assert counts(found) == {}
    assert {split: len(facts) for split, facts in found.facts.items()} == {"train": 27, "val": 12}


@pytest.mark.parametrize("code", FAULTS)
def test_look__finds_one_fault_and_only_that(tmp_path: Path, code: str) -> None:
    """Each fault alone in a clean set is found under its code, and no other is."""
    root = clean(tmp_path / "set")
    number, plant = FAULTS[code]
    plant(root)
    assert counts(seen(root)) == {code: number}


def test_look__finds_all_faults_together(tmp_path: Path) -> None:
    """One data set with every fault that can be had together: each is found, as often as it is there."""
    expected = faulty(tmp_path / "set")
    found = counts(seen(tmp_path / "set"))
    assert found == expected


def test_look__the_table_of_faults_is_complete() -> None:
    """Every code is planted here or tested by name in another place."""
    elsewhere = {"no_data", "unlisted_folder", "one_class", "class_not_in_test", "large_picture", "label_disagrees"}
    network = {"disk", "memory", "dry_run", "non_finite", "label_error", "normalisation", "not_checked"}
    assert set(KINDS) == set(FAULTS) | elsewhere | network


def test_look__quick_finds_all_that_needs_no_pixels(tmp_path: Path) -> None:
    """Without decoding, only what shows in pixels is missed: cuts, blanks, and near-duplicates."""
    expected = faulty(tmp_path / "set")
    needs_pixels = {"damaged", "blank", *(code for code in expected if code.startswith("near_"))}
    assert counts(seen(tmp_path / "set", pixels=False)) == {
        code: number for code, number in expected.items() if code not in needs_pixels
    }


def test_look__one_class_and_test_split(tmp_path: Path) -> None:
    """A set of one class, and a class that the test split lacks."""
    for split in ("train", "val"):
        for index in range(3):
            save(noise(index + 50 * (split == "val")), tmp_path / "one" / split / "red" / f"{index}.png")
    assert counts(seen(tmp_path / "one")) == {"one_class": 1}
    root = clean(tmp_path / "set")
    for number, name in enumerate(("blue", "green")):
        save(noise(5000 + number), root / "test" / name / "0.png")
    assert counts(seen(root, test_split="test")) == {"class_not_in_test": 1}


def test_look__large_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture at which Pillow would warn is told; at twice of that it is a bomb."""
    root = clean(tmp_path / "set")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    save(noise(40_001, size=(80, 60)), root / "train/red/large.png")
    save(noise(40_002, size=(100, 90)), root / "train/red/larger.png")
    assert counts(seen(root)) == {"large_picture": 1, "bomb": 1}


def test_look__folder_that_training_refuses_for_another_reason(tmp_path: Path) -> None:
    """What no check knows is told in the words of the refusal."""
    for number, name in enumerate(("blue", "red")):
        save(noise(number), tmp_path / "set" / name / "0.png")
    found = seen(tmp_path / "set")
    assert counts(found) == {"one_picture_class": 2, "no_data": 1}
    assert "none can be held out" in found.findings[1].examples[0].name


def test_look__no_such_folder(tmp_path: Path) -> None:
    """A folder that is not there is a wrong request, not a finding."""
    with pytest.raises(RequestError, match="cannot list the data folder .*No such file"):
        seen(tmp_path / "nowhere")


def test_look__knows_again_what_it_has_read(tmp_path: Path) -> None:
    """A second look reads only what has changed; one that decodes reads all that was not decoded before."""
    root = clean(tmp_path / "set")
    assert seen(root, pixels=False).pace.num_read == 39
    assert seen(root, pixels=False).pace.num_read == 0
    assert seen(root, pixels=True).pace.num_read == 39
    save(noise(4711), root / "train/red/0.png")
    again = seen(root, pixels=False)
    assert (again.pace.num_read, again.pace.num_known) == (1, 38)
    assert counts(again) == {}
