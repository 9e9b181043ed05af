"""Relative position bias tables at another patch grid, for BEiT fine-tuned at another image size.

Source: timm 1.0's `resize_rel_pos_bias_table` (its default, without scipy), after Microsoft's BEiT.
Legend: gh gw patch grid, nh heads, T rows of a table.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.models.rel_pos_vit import EXTRA_ROWS, table_rows


def resize_bias_table(table: Tensor, *, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a table of biases by distance to another patch grid.

    Small distances matter most, so the old distances are laid out over the new range with growing gaps (a geometric
    progression from 1), and the new ones read linearly between them, all in float32. The rows of the class token stay.

    Args:
        table: [T, nh].
        old: the (gh, gw) that the table was made for.
        new: the (gh, gw) wanted.

    Returns:
        [new T, nh] in the table's dtype; `table` itself where the grid stays.

    Raises:
        RequestError: the table has other rows than `old` needs.
    """
    if table.ndim != 2 or table.shape[0] != table_rows(old):
        raise RequestError(
            f"a bias table for {old[0]}x{old[1]} patches has {table_rows(old)} rows, this one has the shape "
            f"{list(table.shape)}; give the grid that it was made for"
        )
    if old == new:
        return table
    rows, columns = (2 * side - 1 for side in old)
    values = rearrange(table[:-EXTRA_ROWS].float(), "(y x) nh -> y x nh", y=rows, x=columns)
    for side_old, side_new in zip(old, new, strict=True):
        # One axis after the other: the second pass finds its axis in front again.
        values = rearrange(_read_between(values, side_old, side_new), "y x nh -> x y nh")
    flat = rearrange(values, "y x nh -> (y x) nh")
    return torch.cat([flat.to(table.dtype), table[-EXTRA_ROWS:]])


def _read_between(values: Tensor, old: int, new: int) -> Tensor:
    """Return values [2 new - 1, ...] at whole distances of values [2 old - 1, ...] at spread ones."""
    at = torch.tensor(_spread(old, new), dtype=torch.float32, device=values.device)
    wanted = torch.arange(-(new - 1), new, device=values.device).float()
    right = torch.bucketize(wanted, at).clamp(max=len(at) - 1)
    left = (right - 1).clamp(min=0)
    from_left, to_right = (wanted - at[left]).clamp(min=0), (at[right] - wanted).clamp(min=0)
    span = from_left + to_right
    share = torch.where(span > 0, from_left / span, 0.5)[:, None, None]  # 0.5: both ends are the same point
    return values[left] * (1 - share) + values[right] * share


def _spread(old: int, new: int) -> list[float]:
    """Return where the old distances lie on the new range: 0, 1, 1 + q, 1 + q + q^2, ... on both sides."""
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1 - ratio ** (old - 1)) / (1 - ratio)
        if reach > new - 1:
            high = ratio
        else:
            low = ratio
    distances, at = [], 1.0
    for step in range(1, old):
        distances.append(at)
        at += ratio**step
    return [*(-distance for distance in reversed(distances)), 0.0, *distances]
