"""Durations as people write them: 90s, 10m, 1h30m."""

from __future__ import annotations

import re

from vit_finetune.common.errors import RequestError

_FORM = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds_of(text: str) -> int:
    """Return a duration in seconds.

    Args:
        text: hours, minutes and seconds, each optional, in this order: "90s", "10m", "1h30m".

    Raises:
        RequestError: the text has another form, or says no time at all.
    """
    found = _FORM.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise RequestError(f"a duration is hours, minutes and seconds above 0, such as 10m, 90s or 1h30m; got {text!r}")
    return total


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: "42 s", "7 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
