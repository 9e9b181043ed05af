"""What a run under a budget decided, as it was decided: the one place where the clock leaves a trace.

    plan.json   {"budget": "10m", "config": {...}, "data": DIGEST, "num_threads": 2, "mixed_precision": "no", ...
                 "pace": {...}, "took": {...}, "in_place": "knn",
                 "decisions": [{"rung": "knn", "decision": "run", ...}, ...]}

A decision that stands in the file is kept: by a resumed run, and by a replay, which is given the file. So a replay is
a function of (configuration, data, file), like any run is one of (configuration, data).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_json
from vit_finetune.training.resume import config_differences, is_harmless

PLAN_FILE = "plan.json"
RUN, SKIP = "run", "skip"
# What a replay may have otherwise: the budget is spent already, and the folder is its own.
_FREE = ("train.budget",)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a rung is climbed, and how far.

    Attributes:
        rung: its name.
        decision: "run" or "skip".
        num_steps: optimizer steps of a rung that trains; None elsewhere.
        starts_from: the rung whose network it starts from; None where that is the recipe's.
        reason: for people.
        predicted_seconds: what the rung was expected to take; None where nothing had been measured yet.
        elapsed_seconds: of the budget, when this was decided.
    """

    rung: str
    decision: str
    num_steps: int | None = None
    starts_from: str | None = None
    reason: str
    predicted_seconds: float | None = None
    elapsed_seconds: float

    @property
    def runs(self) -> bool:
        """Whether the rung is climbed."""
        return self.decision == RUN


@dataclass(frozen=True, kw_only=True)
class Log:
    """The decisions of a run, and what they hold for.

    Attributes:
        budget: of the run, as configured.
        config: the whole configuration as plain values.
        data: digest of the pictures.
        num_threads: CPU threads per process; a resumed run and a replay take it over, since sums depend on it.
        mixed_precision: of training, settled; taken over likewise.
        num_processes: processes that share the run.
        pace: seconds that were measured, of `Pace`; None before the first rung was climbed.
        took: seconds of each rung that was climbed, by name.
        in_place: the rung whose model `model/` holds; None before there is one.
        decisions: in the order they were made.
    """

    budget: str
    config: Mapping[str, Any]
    data: str
    num_threads: int
    mixed_precision: str
    num_processes: int
    pace: Mapping[str, float | None] | None = None
    took: Mapping[str, float] = field(default_factory=dict)
    in_place: str | None = None
    decisions: tuple[Decision, ...] = ()

    def of(self, rung: str) -> Decision | None:
        """Return what was decided about a rung, or None."""
        return next((decision for decision in self.decisions if decision.rung == rung), None)

    def with_decision(self, decision: Decision) -> Log:
        """Return the log with one more decision."""
        return replace(self, decisions=(*self.decisions, decision))

    def write(self, run_dir: Path) -> None:
        """Write plan.json, whole or not at all."""
        write_json(run_dir / PLAN_FILE, asdict(self))


def read_log(path: Path) -> Log:
    """Read a plan.json.

    Args:
        path: the file, or the folder of a run.

    Raises:
        RequestError: there is none, or it is not of a run under a budget.
    """
    path = path / PLAN_FILE if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Log(**{**values, "decisions": tuple(Decision(**row) for row in values["decisions"])})
    except OSError as error:
        raise RequestError(f"cannot read the plan {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise RequestError(
            f"{path} holds no decisions of a run under a budget; give the plan.json of one (vit-finetune train ... "
            "--budget 10m writes it)"
        ) from None


def check_replay(log: Log, now: Log) -> None:
    """Refuse to replay decisions that were made for something else.

    Args:
        log: of the run to replay, whole.
        now: what this run would be.

    Raises:
        RequestError: configuration, data or processes differ; every difference is named.
    """
    differences = [
        line
        for key, line in config_differences(log.config, now.config)
        if not is_harmless(key) and not key.startswith(_FREE)
    ]
    for name in ("data", "num_processes"):  # threads and precision are taken over
        before, after = getattr(log, name), getattr(now, name)
        if before != after:
            differences.append(f"{name} was {before!r}, now {after!r}")
    if differences:
        raise RequestError(f"this plan was made for something else: {'; '.join(differences)}")
