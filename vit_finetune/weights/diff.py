"""Which tensors of two checkpoints differ, and by how much, whatever their formats are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.checkpoint import Checkpoint
from vit_finetune.weights.conversion import converted_from
from vit_finetune.weights.formats import detect_format
from vit_finetune.weights.lazy import Lazy, lazily
from vit_finetune.weights.sources import read_source


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One name of timm's layout in two checkpoints.

    Attributes:
        name: timm's, or the file's own where its format is unknown.
        what: "equal", "values", "shape", "only in A" or "only in B".
        max_abs_difference: of values; 0 where equal, None where they can't be compared.
        details: shapes and types where they differ, for people.
    """

    name: str
    what: str
    max_abs_difference: float | None = None
    details: str = ""

    def line(self) -> str:
        """Return the difference as one line."""
        amount = "" if self.max_abs_difference is None else f" by up to {self.max_abs_difference:.3e}"
        return f"{self.name}  {self.what}{amount}{f'  ({self.details})' if self.details else ''}"


def diff_checkpoints(a: str | Path, b: str | Path) -> list[Difference]:
    """Compare two checkpoints tensor by tensor, under timm's names.

    Args:
        a: whatever `read_source` takes.
        b: the same.

    Returns:
        One entry for each name, in order, equal ones included.

    Raises:
        RequestError: one of them can't be read.
    """
    left, right = (_our_tensors(read_source(source)) for source in (a, b))
    return [_compare(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


def _our_tensors(checkpoint: Checkpoint) -> dict[str, Lazy]:
    """Return tensors under our names; under the file's own where it is of no known format."""
    try:
        detect_format(checkpoint.tensors)
    except RequestError:
        return lazily(checkpoint.tensors)
    return lazily(converted_from(checkpoint).tensors)


def _compare(name: str, left: Lazy | None, right: Lazy | None) -> Difference:
    if left is None or right is None:
        return Difference(name=name, what="only in B" if left is None else "only in A")
    if left.shape != right.shape:
        return Difference(name=name, what="shape", details=f"{list(left.shape)} and {list(right.shape)}")
    first, second = left.compute(), right.compute()
    types = f"{first.dtype} and {second.dtype}".replace("torch.", "") if first.dtype != second.dtype else ""
    largest = float((first.double() - second.double()).abs().max()) if first.numel() else 0.0
    return Difference(name=name, what="values" if largest else "equal", max_abs_difference=largest, details=types)
