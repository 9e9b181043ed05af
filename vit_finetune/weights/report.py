"""What loading did, for people and for the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_finetune.common.preprocess import PreprocessSpec

_SHOWN = 4  # names per kind in the three lines; the mapping holds all


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Every tensor of the file and of the model, accounted for once.

    Attributes:
        loaded: the model's names that hold the file's values, resampled ones included.
        resampled: name to what was done to fit it.
        dropped: the file's name to the reason.
        newly_initialized: the model's names that the file had nothing for.
        preprocess: the evaluation transform for this model; its `assumed` names what no source told.
        class_names: of the file's head, in its order; None where the source names none.
        source: where the weights came from.
        architecture: timm's name of the network, where known.
        notes: decisions and warnings, one sentence each.
        thresholds: of a file whose head is for several classes a picture: the probability from which on it has each.
        temperature: of a file whose probabilities were calibrated: what the logits of its head are divided by.
    """

    loaded: tuple[str, ...]
    resampled: dict[str, str]
    dropped: dict[str, str]
    newly_initialized: tuple[str, ...]
    preprocess: PreprocessSpec
    class_names: tuple[str, ...] | None
    source: str
    architecture: str | None
    notes: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None
    temperature: float | None = None

    def lines(self) -> list[str]:
        """Return the report in three lines."""
        counts = (
            f"{len(self.loaded)} tensors loaded ({len(self.resampled)} resampled), {len(self.dropped)} dropped, "
            f"{len(self.newly_initialized)} new"
        )
        details = [
            *(f"{name} {what}" for name, what in self.resampled.items()),
            *(f"dropped {_few(names)}: {reason}" for reason, names in self._by_reason().items()),
            *([f"new {_few(list(self.newly_initialized))}"] if self.newly_initialized else []),
        ]
        spec = self.preprocess
        assumed = f", assumed: {', '.join(spec.assumed)}" if spec.assumed else ""
        facts = f"preprocessing from {spec.source}{assumed}"
        return [
            f"{self.architecture or 'a ViT'} from {self.source}: {counts}",
            "; ".join(details) or "every tensor taken as it is",
            "; ".join([facts, *self.notes]),
        ]

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "source": self.source,
            "architecture": self.architecture,
            "loaded": list(self.loaded),
            "resampled": self.resampled,
            "dropped": self.dropped,
            "newly_initialized": list(self.newly_initialized),
            "preprocess": {
                **self.preprocess.to_mapping(),
                "source": self.preprocess.source,
                "assumed": list(self.preprocess.assumed),
            },
            "class_names": None if self.class_names is None else list(self.class_names),
            "notes": list(self.notes),
        }

    def _by_reason(self) -> dict[str, list[str]]:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        return reasons


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
