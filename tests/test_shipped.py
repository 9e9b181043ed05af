"""What ships is listed, shown and copied; nothing is overwritten unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import ROOT, run_module

from vit_finetune import Config
from vit_finetune.common.errors import RequestError
from vit_finetune.shipped import copy_shipped, find_shipped, listing, shipped_recipes, shipped_scripts


def test_listing__a_line_each() -> None:
    """Every recipe, preset and script has a line with its name and what it is for."""
    names = {line.split()[0]: line.split(maxsplit=1)[1] for line in listing()}
    assert set(names) == {*shipped_recipes(), *shipped_scripts()}
    assert {path.name for path in ROOT.glob("recipes/*.py")} == set(shipped_scripts())
    assert all(len(text) > 20 and text.endswith(".") for text in names.values())


def test_copy__is_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy means what the original means, here or in a folder, without the line about the schema beside it."""
    monkeypatch.chdir(tmp_path)
    assert copy_shipped("vit_paper/cifar10") == Path("cifar10.yaml")
    assert Config.load("cifar10.yaml") == Config.load("vit_paper/cifar10")
    text = Path("cifar10.yaml").read_text()
    assert text == "".join(find_shipped("vit_paper/cifar10").read_text().splitlines(keepends=True)[1:])
    assert copy_shipped("k_fold.py", Path()).read_bytes() == (ROOT / "recipes" / "k_fold.py").read_bytes()
    assert copy_shipped("quickstart.yaml", Path("deep/mine.yaml")) == Path("deep/mine.yaml")


def test_copy__never_overwrites_unasked(tmp_path: Path) -> None:
    """An existing file stays, unless asked."""
    mine = tmp_path / "quickstart.yaml"
    mine.write_text("mine")
    for dst in (mine, tmp_path):
        with pytest.raises(RequestError, match=r"quickstart\.yaml exists already; give another place or --overwrite"):
            copy_shipped("quickstart", dst)
    assert mine.read_text() == "mine"
    copy_shipped("quickstart", tmp_path, overwrite=True)
    assert mine.read_text() != "mine"


@pytest.mark.parametrize(("name", "hint"), [("quikstart", "did you mean 'quickstart'"), ("", "recipes list")])
def test_find__unknown(name: str, hint: str) -> None:
    """An unknown name is one line with the closest."""
    with pytest.raises(RequestError, match=hint):
        find_shipped(name)


def test_verb__list_show_copy(tmp_path: Path) -> None:
    """The command line does all three; a mistake is one line and exit code 2."""
    listed = run_module(["recipes"])
    assert listed.returncode == 0
    assert listed.stdout.splitlines() == listing()
    shown = run_module(["recipes", "show", "vit_paper"])
    assert shown.stdout == (ROOT / "recipes" / "vit_paper.yaml").read_text()
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(run_module(["recipes", "show", "vit_paper/pets", "--resolved"]).stdout)
    assert "extends" not in resolved.read_text()
    assert Config.load(resolved) == Config.load("vit_paper/pets")
    copied = run_module(["recipes", "copy", "augreg", str(tmp_path)])
    assert copied.stdout.strip() == str(tmp_path / "augreg.yaml")
    again = run_module(["recipes", "copy", "augreg", str(tmp_path)])
    assert again.returncode == 2
    assert again.stderr.startswith("error: ") and "Traceback" not in again.stderr
