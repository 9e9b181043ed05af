"""A headless Chromium that is installed, for tests of pages; without one they are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
# Where the tests leave pictures of the pages, for people to look at; nowhere if it is not set.
SCREENSHOTS = "VIT_FINETUNE_SCREENSHOTS"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Each element with letters of its own: its colour against what is painted behind it, as WCAG 2.2 counts (1.4.3).
_CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const bytes = (colour, under) => {
    canvas.fillStyle = `rgb(${under.join(",")})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.push(getComputedStyle(e).backgroundColor);
    return chain.reverse().reduce((under, colour) => bytes(colour, under), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || ["SCRIPT", "STYLE"].includes(element.tagName) || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = bytes(element.namespaceURI.endsWith("svg") ? style.fill : style.color, ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (isLarge ? 3 : 4.5)) {
      found.push(`${element.tagName} ${ratio.toFixed(2)} ${element.textContent.slice(0, 30)}`);
    }
  }
  return found;
}"""


@contextmanager
def opened(page: Path, *, size: str = "desktop", scheme: str = "light", script: bool = True) -> Iterator[Any]:
    """Yield a page in the browser, and refuse at the end what it must not do: ask for anything, complain, overflow.

    Args:
        page: the file.
        size: a key of SIZES.
        scheme: light or dark.
        script: whether the browser runs scripts.
    """
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    width, height = SIZES[size]
    asked: list[str] = []
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
        )
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
        tab.goto(page.as_uri())
        yield tab
        folder = os.environ.get(SCREENSHOTS)
        if folder:
            tab.screenshot(path=Path(folder) / f"{page.stem}-{page.parent.name}-{size}-{scheme}.png", full_page=True)
        browser.close()
    foreign = [url for url in asked if url != page.as_uri() and not url.startswith("data:")]
    assert not foreign, f"the page asks for {foreign}"
    assert not said, f"the page says {said}"


def too_faint(tab: Any) -> list[str]:
    """Return the texts of a page whose contrast is below AA."""
    found: list[str] = tab.evaluate(_CONTRASTS)
    return found


def overflow(tab: Any) -> int:
    """Return by how many pixels a page is wider than its window."""
    wide: int = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return wide
