"""The site builds without a warning, from the documents as they lie in the repository, and asks no other machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import ROOT

import vit_finetune

FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"?(https?://[^\s\">]+)", re.IGNORECASE)


@pytest.mark.slow
def test_site__builds_strictly_and_is_whole(tmp_path: Path) -> None:
    """Every warning is an error; README and recipes are pages, links turn with them, nothing is fetched."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path for path in tmp_path.rglob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= pages.keys()
    start = pages["index.html"].read_text(encoding="utf-8")
    assert 'href="data.html"' in start
    assert 'href="recipes/image_folder.yaml"' in start
    assert (tmp_path / "site" / "recipes" / "image_folder.yaml").is_file()
    reference = pages["reference.html"].read_text(encoding="utf-8")
    assert all(f".{name}" in reference for name in vit_finetune.__all__)
    assert "shape" in reference.lower()
    fetched = {page: FETCHED.findall(path.read_text(encoding="utf-8")) for page, path in pages.items()}
    assert not {page: found for page, found in fetched.items() if found}
