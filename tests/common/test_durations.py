"""Durations as people write them."""

from __future__ import annotations

import pytest

from vit_finetune.common.durations import duration_text, seconds_of
from vit_finetune.common.errors import RequestError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("2m5s", 125), ("1h1m1s", 3661)]
)
def test_seconds_of__hours_minutes_seconds(text: str, seconds: int) -> None:
    """Each part counts, alone and together."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0m", "0s", "10 m", "1.5h", "m", "5s10m", "-1m", "10M", "ten minutes"])
def test_seconds_of__refuses_other_forms(text: str) -> None:
    """What is no duration, or no time at all, is refused with the form that is meant and what was got."""
    with pytest.raises(RequestError, match="such as 10m, 90s or 1h30m; got"):
        seconds_of(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (425, "7 min 05 s")])
def test_duration_text__as_people_read_it(seconds: float, text: str) -> None:
    """Rounded to seconds before minutes are split off."""
    assert duration_text(seconds) == text
