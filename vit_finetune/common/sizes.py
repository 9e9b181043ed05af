"""Sizes as people write them."""

from __future__ import annotations

import re

from vit_finetune.common.errors import RequestError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_FORM = re.compile(r"(\d+)\s*([A-Za-z]+)")


def parse_size(text: str, name: str) -> int:
    """Return how many bytes a size such as 5GB (10^9 bytes each) or 5GiB (2^30) means.

    Args:
        text: a whole number and KB, MB, GB, KiB, MiB or GiB.
        name: of the option, for the message.

    Raises:
        RequestError: the text has another form.
    """
    found = _FORM.fullmatch(text.strip())
    number, unit = found.groups() if found else ("0", "")
    if unit.upper() not in _UNITS or int(number) < 1:
        raise RequestError(f"{name}={text!r} is no size; write a whole number and KB, MB or GB, such as 5GB")
    return int(number) * _UNITS[unit.upper()]
