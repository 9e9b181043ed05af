"""Which of two figures is better."""

from __future__ import annotations

import pytest

from vit_finetune.common.figures import is_better


@pytest.mark.parametrize(
    ("metric", "value", "best", "better"),
    [
        ("accuracy", 0.1, None, True),
        ("accuracy", 0.6, 0.5, True),
        ("accuracy", 0.5, 0.5, False),
        ("accuracy", 0.4, 0.5, False),
        ("macro_accuracy", 0.6, 0.5, True),
        ("top5", 0.6, 0.5, True),
        ("loss", 9.0, None, True),
        ("loss", 0.4, 0.5, True),
        ("loss", 0.5, 0.5, False),
        ("loss", 0.6, 0.5, False),
    ],
)
def test_is_better__direction_and_ties(metric: str, value: float, best: float | None, better: bool) -> None:
    """More is better, of a loss less; a tie is not better, so the earlier stays."""
    assert is_better(metric, value, best) is better
