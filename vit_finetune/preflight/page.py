"""A check as one HTML file that needs nothing else: no script, no network, light and dark.

Everything that comes from the data is escaped, and pictures are small JPEGs inside the file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.data.audit.findings import KINDS, Example, Finding, printable
from vit_finetune.data.images import decode_image
from vit_finetune.pages import render, thumbnail
from vit_finetune.preflight.outcome import CheckResult

_MAX_CASES = 24  # of a finding that are shown
_MAX_TOGETHER = 4  # pictures of one case
_THUMB = 112  # pixels


def page_of(result: CheckResult, figures: Sequence[str]) -> str:
    """Return a check as a page.

    Args:
        result: of `check`.
        figures: the dry run, line by line.
    """
    values = {
        "result": result,
        "sizes": ", ".join(f"{count:,} {name}" for name, count in result.sizes().items()),
        "findings": [_finding(result, finding) for finding in result.findings],
        "figures": figures,
        "histograms": result.to_mapping()["pictures"],
        "colours": result.colours(),
        "classes": [(printable(name), counts) for name, counts in result.classes().items()],
    }
    return render("check.html", values)


def _finding(result: CheckResult, finding: Finding) -> dict[str, Any]:
    """Return what the page tells of one finding."""
    return {
        "kind": finding.severity.name.lower(),
        "code": finding.code,
        "how_many": finding.how_many,
        "what": finding.what,
        "remedy": KINDS[finding.code].remedy,
        "cases": [_case(result, example) for example in finding.examples[:_MAX_CASES]],
        "more": finding.how_many - min(len(finding.examples), _MAX_CASES),
    }


def _case(result: CheckResult, example: Example) -> dict[str, Any]:
    pictures = [_picture(result, split, index) for split, index in example.places[:_MAX_TOGETHER]]
    return {"name": example.name, "note": example.note, "pictures": pictures}


def _picture(result: CheckResult, split: str, index: int) -> str:
    """Return the address of a thumbnail; empty for a picture that cannot be decoded."""
    pictures = dict(result.splits.named())[split] if result.splits is not None else None
    if pictures is None or result.facts[split][index].fault:
        return ""
    try:
        with Image.open(io.BytesIO(pictures.store.read(index))) as image:
            image.draft(None, (_THUMB, _THUMB))
            small = decode_image(image)
    except (RequestError, OSError):  # it changed since, or the quick level did not look at its pixels
        return ""
    return thumbnail(small, _THUMB)
