"""What formats share whose patch embedding is a linear layer on flat patches: columns are rows, columns, channels.

Not a format. Patch size and channels stand in such a weight as one product only, so one of the two has to be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_finetune.common.errors import RequestError

FLAT_TO_KERNEL = "d (p q c) -> d c p q"


def patch_fields(columns: int | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return patch size and channels, of which one is known.

    Args:
        columns: of the weight on flat patches; None where the file has no such tensor, which is another's to say.
        fields: what is known; a patch is taken for square only where the number of channels alone is known.

    Raises:
        RequestError: neither is known, or what is known doesn't divide the columns.
    """
    patch, channels = fields.get("patch_size"), fields.get("in_chans")
    if columns is None or (patch and channels):
        return {}
    if patch:
        height, width = (patch, patch) if isinstance(patch, int) else patch
        channels, rest = divmod(columns, height * width)
        if not rest:
            return {"in_chans": channels}
        raise RequestError(f"patches of {height}x{width} pixels don't divide the {columns} values of a flat patch")
    if channels:
        side = math.isqrt(columns // channels)
        if side * side * channels == columns:
            return {"patch_size": (side, side)}
        raise RequestError(
            f"{columns} values of a flat patch are no square patch of {channels} channels: give patch_size"
        )
    raise RequestError(
        f"weights tell that a patch has {columns} values, but not how many of them are channels: give patch_size or "
        "in_chans"
    )
