"""A run that trains no network: frozen features, the readout that cross-validation on train prefers, and its folder.

Reading order: `story.py` is the run top to bottom; `planning.py`, `tables.py` and `outcome.py` are its steps.
"""

from vit_finetune.readout_run.outcome import ReadoutResult
from vit_finetune.readout_run.story import run_readout

__all__ = ["ReadoutResult", "run_readout"]
