"""What a check came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_finetune.data import Splits
from vit_finetune.data.audit.facts import PictureFacts
from vit_finetune.data.audit.files import colours_of, histograms
from vit_finetune.data.audit.findings import Finding


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        level: quick or full.
        verdict: `go`, `go with warnings` or `stop`.
        findings: the worst first.
        figures: of the dry run; empty at the quick level.
        ranking: every training picture with what is thought of its label, the most suspicious first.
        pace: how fast the files were read, in words.
        seconds: what each part took.
        splits: the pictures; None where there are none.
        facts: of every picture of each split.
    """

    level: str
    verdict: str
    findings: Sequence[Finding]
    figures: Mapping[str, Any]
    ranking: Sequence[Mapping[str, Any]]
    pace: str
    seconds: Mapping[str, float]
    splits: Splits | None
    facts: Mapping[str, Sequence[PictureFacts]]

    def to_mapping(self) -> dict[str, Any]:
        """Return everything but the ranking, which is a table of its own, as JSON values."""
        return {
            "verdict": self.verdict,
            "level": self.level,
            "findings": [finding.to_mapping() for finding in self.findings],
            "splits": self.sizes(),
            "classes": self.classes(),
            "pictures": histograms(self.facts),
            "colours": self.colours(),
            "dry_run": dict(self.figures),
            "pace": self.pace,
            "seconds": {part: round(value, 3) for part, value in self.seconds.items()},
        }

    def sizes(self) -> dict[str, int]:
        """Return the number of pictures of each split."""
        return {} if self.splits is None else {name: len(pictures) for name, pictures in self.splits.named()}

    def classes(self) -> dict[str, dict[str, int]]:
        """Return how many pictures of each class every split has."""
        if self.splits is None:
            return {}
        names = self.splits.class_names
        counts = {split: pictures.class_counts(len(names)).tolist() for split, pictures in self.splits.named()}
        return {name: {split: part[index] for split, part in counts.items()} for index, name in enumerate(names)}

    def colours(self) -> dict[str, list[float]]:
        """Return mean and standard deviation of the training pictures; empty where no pixel was looked at."""
        found = colours_of(self.facts.get("train", ()))
        return {} if found is None else {"mean": found[0], "std": found[1]}
