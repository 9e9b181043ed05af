"""A ladder of seconds: three rungs on a two-block network, and a clock that says what a test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from run_helpers import tiny_config

from vit_finetune.config import Config
from vit_finetune.ladder.rungs import BLEND, READOUT, TRAINING, Rung

# The part of the first rung is played by a linear probe: what a rung runs is a recipe, so any mode will do.
PROBE = Rung(
    name="logistic",
    kind=READOUT,
    what="a linear probe",
    settings={"tuning": {"mode": "linear_probe"}, "train": {"steps": 2}, "evaluation": {"every_steps": 2}},
)
TUNE = Rung(name="fine_tune", kind=TRAINING, what="all of it", epochs=2, share=0.5, start=("logistic",))
LONGER = Rung(name="fine_tune_longer", kind=TRAINING, what="again", epochs=3, start=("fine_tune", "logistic"))
MIX = Rung(name="blend", kind=BLEND, what="averages", start=("logistic", "fine_tune", "fine_tune_longer"))
RUNGS = (PROBE, TUNE, LONGER, MIX)


class Clock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def budget_config(root: Path, run_dir: Path, budget: str = "60s", **sections: Any) -> Config:
    """Return a tiny run under a budget."""
    values = tiny_config(root, run_dir, **sections)
    values["train"] = {"budget": budget, "global_batch_size": 12, "per_device_batch_size": 4}
    values["schedule"] = values["evaluation"] = {}
    for section in ("schedule", "evaluation", "train"):
        values[section] = {**values[section], **sections.get(section, {})}
    return Config.load(values)
