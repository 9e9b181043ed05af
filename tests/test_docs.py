"""The documents tell the truth: links lead somewhere, Python blocks run, commands exist.

A Python block that cannot run here is preceded by `<!-- not run: REASON -->`; it must still compile. The other blocks
of a document run in order, in one namespace, in an empty folder that holds a small image folder `photos/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md")])
_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: .+ -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"(?<!\!)\[[^\]]+\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<picture>[^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its language, its text, whether it may run, and where it starts."""

    language: str
    code: str
    runs: bool
    line: int


def blocks(document: Path, *languages: str) -> Iterator[Block]:
    """Yield the fenced blocks of a document in the given languages."""
    text = document.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        if match["language"] in languages:
            line = text.count("\n", 0, match.start("code")) + 1
            yield Block(match["language"], match["code"], match["skip"] is None, line)


def anchors(document: Path) -> set[str]:
    """Return the anchors that the headings of a document make, as code hosts spell them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty folder with `photos/{train,val}/{cat,dog}` and twelve pictures a class and split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents__links(document: Path) -> None:
    """Every relative link of a document leads to a file, and its anchor to a heading."""
    for match in _LINK.finditer(document.read_text(encoding="utf-8")):
        target = match["target"] or match["picture"]
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name}: the link {target} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{document.name}: {path.name} has no heading for #{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.usefixtures("photos")
def test_documents__python_blocks(document: Path) -> None:
    """Every Python block runs, or is marked with a reason and at least compiles."""
    namespace: dict[str, object] = {"__name__": "document"}
    for block in blocks(document, "python"):
        code = compile("\n" * (block.line - 1) + block.code, str(document), "exec")
        if block.runs:
            exec(code, namespace)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents__yaml_blocks(document: Path) -> None:
    """Every YAML block parses."""
    for block in blocks(document, "yaml"):
        yaml.safe_load(block.code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents__commands(document: Path) -> None:
    """Every `make TARGET` and every script or recipe path in a shell block exists."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks(document, "sh", "bash", "shell"):
        for line in block.code.splitlines():
            command = line.split("#", 1)[0]
            for call in re.findall(r"\bmake((?: [a-z]+\b(?!=))+)", command):
                assert set(call.split()) <= targets, f"{document.name}: {line.strip()!r} names an unknown make target"
            for path in re.findall(r"\b(?:recipes|benchmarks)/[\w./-]+\.(?:py|yaml)\b", command):
                assert (ROOT / path).exists(), f"{document.name}: {path} does not exist"
