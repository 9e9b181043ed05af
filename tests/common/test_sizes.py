"""Sizes as people write them."""

from __future__ import annotations

import pytest

from vit_finetune.common.errors import RequestError
from vit_finetune.common.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [("5GB", 5 * 10**9), ("250 mb", 250 * 10**6), ("1KB", 1000), ("80GiB", 80 * 2**30), ("1 mib", 2**20)],
)
def test_parse_size__units(text: str, count: int) -> None:
    """Units are powers of a thousand, or with an i of 1024, in either case, with or without a space."""
    assert parse_size(text, "x") == count


@pytest.mark.parametrize("text", ["", "5", "GB", "0GB", "-1GB", "1.5GB", "5TB", "5i"])
def test_parse_size__refuses_the_rest(text: str) -> None:
    """Anything else is refused with the option's name and an example."""
    with pytest.raises(RequestError, match=r"max_memory='.*' is no size; .* such as 5GB"):
        parse_size(text, "max_memory")
