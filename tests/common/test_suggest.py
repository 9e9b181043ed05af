"""Suggestions: near words are offered, best first; far ones are not."""

from __future__ import annotations

import pytest

from vit_finetune.common.suggest import closest, did_you_mean

KNOWN = ["steps", "epochs", "global_batch_size", "label_smoothing"]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("stepz", "; did you mean 'steps'?"),
        ("batch_size", "; did you mean 'global_batch_size'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_did_you_mean__text(word: str, text: str) -> None:
    """The text can be put at the end of any message, and is empty where nothing is near."""
    assert did_you_mean(word, KNOWN) == text


def test_did_you_mean__several() -> None:
    """Several near words are joined by "or", best first, up to the limit."""
    known = ["vit_base", "vit_bass", "vit_bast", "vit_bask"]
    assert did_you_mean("vit_base", known, limit=2).startswith("; did you mean 'vit_base' or 'vit_bas")
    assert len(closest("vit_base", known, limit=3)) == 3


def test_closest__takes_any_iterable() -> None:
    """The known words may be a generator, and none at all."""
    assert closest("stepz", (word for word in KNOWN)) == ["steps"]
    assert closest("stepz", []) == []
