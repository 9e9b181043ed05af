"""What a conversion did, tensor by tensor, and how it was proven; for people and for `conversion.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor that was written.

    Attributes:
        sources: the source's names that it is made of; empty for a constant.
        target: its name in the result.
        operation: what was done, in words; "as it is" where nothing was.
        shape: in the result.
        dtype: in the result, without "torch.".
        sha256: of its bytes; None where nothing was written (a dry run).
    """

    sources: tuple[str, ...]
    target: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How the source and the result compare on the same pictures.

    Attributes:
        compared: "logits" or "tokens".
        by: what computed the source's side, and what the result's.
        images: what they were.
        max_abs_difference: the largest difference of any value.
        scale: the largest absolute value of the source's side, to judge the difference by.
        top1_agreement: share of pictures with the same best class; None for tokens.
    """

    compared: str
    by: tuple[str, str]
    images: str
    max_abs_difference: float
    scale: float
    top1_agreement: float | None


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """Everything that a conversion decided and did.

    Attributes:
        source: what was read, in words.
        destination: the folder that was written; None for a dry run.
        source_format: its format.
        target_format: the format written.
        architecture: timm's name of the network, where known.
        config: the network's fields.
        tensors: one row for each tensor written.
        dropped: the source's names that have no place, each with the reason.
        set_aside: the source's tensors that the way back needs, kept beside the result.
        way_back: how the source spelled its names, for the way back; None where its names are ours.
        notes: decisions and rewrites, one sentence each.
        files: the files of the result.
        verification: the proof; None where it wasn't asked for.
    """

    source: str
    destination: str | None
    source_format: str
    target_format: str
    architecture: str | None
    config: Mapping[str, Any]
    tensors: tuple[TensorRow, ...]
    dropped: Mapping[str, str]
    set_aside: tuple[str, ...]
    way_back: Mapping[str, Any] | None
    notes: tuple[str, ...]
    files: tuple[str, ...]
    verification: Verification | None

    def lines(self) -> list[str]:
        """Return the report in a few lines."""
        changed = sum(row.operation != "as it is" for row in self.tensors)
        where = f"{self.destination}: {', '.join(self.files)}" if self.destination else "nothing written (dry run)"
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        return [
            f"{self.source}: {self.source_format} -> {self.target_format}, {len(self.tensors)} tensors written, "
            f"{changed} of them changed, {len(self.dropped)} without a place",
            where,
            *(f"without a place: {_few(names)}: {reason}" for reason, names in reasons.items()),
            *(f"note: {note}" for note in self.notes),
            *([self._proof(self.verification)] if self.verification else []),
        ]

    @staticmethod
    def _proof(done: Verification) -> str:
        agreement = "" if done.top1_agreement is None else f", same best class in {done.top1_agreement:.0%}"
        return (
            f"verified by {done.by[0]} against {done.by[1]} on {done.images}: largest difference of {done.compared} "
            f"{done.max_abs_difference:.1e} at a scale of {done.scale:.3g}{agreement}"
        )

    def table_lines(self) -> list[str]:
        """Return one line for each tensor."""
        return [
            f"{row.target}  {list(row.shape)} {row.dtype}  <- {', '.join(row.sources)}  ({row.operation})"
            for row in self.tensors
        ]

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def _few(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
