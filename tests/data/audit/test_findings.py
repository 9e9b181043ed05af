"""The table of faults is the documented one, and the verdict follows the worst."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_finetune.data.audit.findings import KINDS, Example, found, verdict, worst_first

DOCS = Path(__file__).parents[3] / "docs" / "preflight.md"


def test_kinds__docs_have_the_same_table() -> None:
    """docs/preflight.md lists every code with its severity, meaning and remedy, in this order, and no other."""
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    expected = [
        f"| `{code}` | {kind.severity.name.lower()} | {kind.what} | {kind.remedy} |" for code, kind in KINDS.items()
    ]
    assert rows == expected


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], "go"),
        (["rotated", "duplicate"], "go"),
        (["rotated", "blank"], "go with warnings"),
        (["blank", "damaged", "rotated"], "stop"),
    ],
)
def test_verdict__is_the_worst(codes: list[str], expected: str) -> None:
    """Notes go, a warning is a warning, a stop stops; the worst comes first."""
    findings = [finding for code in codes for finding in found(code, [Example("a")])]
    assert verdict(findings) == expected
    severities = [finding.severity for finding in worst_first(findings)]
    assert severities == sorted(severities, reverse=True)
    assert found("blank", []) == []
