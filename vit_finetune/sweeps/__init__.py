"""Many runs of one recipe: every combination of a grid, or a search by optuna; the best by val, scored on test once."""

from vit_finetune.sweeps.spaces import AUGREG_GRID
from vit_finetune.sweeps.sweep import SweepResult, sweep

__all__ = ["AUGREG_GRID", "SweepResult", "sweep"]
