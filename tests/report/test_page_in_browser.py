"""The report as a person meets it: in a browser, wide and narrow, light and dark, with a keyboard, without scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import SCHEMES, SIZES, needs_chromium, opened, overflow, too_faint
from report_helpers import HOSTILE, add_pictures, softmax, write_run

from vit_finetune.report import compare_runs, write_comparison, write_report

pytestmark = needs_chromium
NAMES = ("apple", *HOSTILE, "zebra")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with hostile names of classes and files, pictures, and a class that val lacks."""
    folder, rng = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    labels = rng.integers(0, 4, 160)
    probabilities = softmax(2.0 * np.eye(5)[labels] + rng.normal(0, 1.4, (160, 5)))
    root = folder / "pictures"
    files = [str(root / "val" / f"{index}-{HOSTILE[index % 3].replace('/', '_')}.png") for index in range(160)]
    run = write_run(folder / "run", labels, probabilities, NAMES, files=files)
    assert add_pictures(run, root, labels, NAMES, copies=2) == files
    return write_report(run, attention=False)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_report__looks_right(report: Path, size: str, scheme: str) -> None:
    """Nothing is fetched, nothing complains or runs over the edge, every text has contrast AA, no name executes."""
    with opened(report, size=size, scheme=scheme) as tab:
        assert overflow(tab) <= 0
        assert too_faint(tab) == []
        assert tab.locator("script").count() == 1
        assert tab.locator("img").count() > 20
        assert all(tab.evaluate("[...document.images].map((image) => image.naturalWidth > 0)"))
        assert HOSTILE[0] in tab.locator("#classes").inner_text()


def test_report__sorts_by_keyboard(report: Path) -> None:
    """Tab reaches the heads of the table, Enter sorts by them and says so; what is missing stays last."""
    with opened(report) as tab:
        head = tab.locator("#classes th", has_text="recall")
        tab.locator("#classes th button").first.focus()
        for _ in range(4):
            tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        column = tab.locator("#classes tbody td:nth-child(5)")
        shares = [cell.get_attribute("data-value") for cell in column.all()]
        assert shares[-1] == "" and shares[:-1] == sorted(shares[:-1], key=float, reverse=True)
        tab.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        shares = [cell.get_attribute("data-value") for cell in column.all()]
        assert shares[-1] == "" and shares[:-1] == sorted(shares[:-1], key=float)
        tab.locator("summary").first.focus()
        tab.keyboard.press("Enter")
        assert tab.locator("details").first.get_attribute("open") is not None


def test_report__without_scripts(report: Path) -> None:
    """Everything but sorting is there without JavaScript; heads of tables are then no buttons."""
    with opened(report, script=False) as tab:
        assert tab.locator("th button").count() == 0
        assert tab.locator("#classes tbody tr").count() == 5
        tab.locator("summary").first.click()
        assert tab.locator("details").first.get_attribute("open") is not None


@pytest.mark.parametrize("size", SIZES)
def test_comparison__looks_right(tmp_path: Path, size: str) -> None:
    """The comparison of runs with hostile names holds to the same rules."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    runs = [
        write_run(tmp_path / name, labels, softmax(skill * np.eye(3)[labels] + rng.normal(0, 1, (200, 3))), HOSTILE)
        for name, skill in (("first <b>", 1.0), ("second", 3.0))
    ]
    page = write_comparison(compare_runs(runs), tmp_path / "compare.html")
    for scheme in SCHEMES:
        with opened(page, size=size, scheme=scheme) as tab:
            assert overflow(tab) <= 0
            assert too_faint(tab) == []
            assert "second is better than first <b> by" in tab.locator("header").inner_text()


def test_pages__of_several_classes(tmp_path: Path) -> None:
    """Report and comparison of several classes a picture fit a phone, with readable text and pictures of mistakes."""
    rng = np.random.default_rng(2)
    labels = (rng.random((60, 5)) < 0.3).astype(np.uint8)
    runs = []
    for name, skill in (("first <b>", 0.1), ("second", 0.5)):
        sure = np.clip(skill * labels + (1 - skill) * rng.random((60, 5)), 0, 1).astype(np.float32)
        runs.append(write_run(tmp_path / name, labels, sure, NAMES))
        add_pictures(runs[-1], tmp_path / "pictures", labels, NAMES)
    pages = [write_report(runs[0], attention=False), write_comparison(compare_runs(runs), tmp_path / "compare.html")]
    for page, words in zip(pages, ("missed in", "macro-F1"), strict=True):
        with opened(page, size="phone") as tab:
            assert overflow(tab) <= 0
            assert too_faint(tab) == []
            assert words in tab.locator("main").inner_text()
