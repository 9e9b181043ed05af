"""Sizes as people write them."""

from __future__ import annotations

from vit_finetune.common.errors import RequestError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str, name: str) -> int:
    """Return how many bytes a size such as 5GB means (10^9 bytes each).

    Args:
        text: a whole number and KB, MB or GB.
        name: of the option, for the message.

    Raises:
        RequestError: the text has another form.
    """
    number, unit = text[:-2].strip(), text[-2:].upper()
    if unit not in _UNITS or not number.isdecimal() or int(number) < 1:
        raise RequestError(f"{name}={text!r} is no size; write a whole number and KB, MB or GB, such as 5GB")
    return int(number) * _UNITS[unit]
