"""Is this recipe going to run, and on data that is worth it? Asked before an hour is spent.

Reading order: `story.py` is a check top to bottom; `looking.py` (folders, files, classes, copies), `suspects.py`
(labels) and `rehearsal.py` (a batch, memory, disk) are its steps; `report.py` and `page.py` tell the outcome.
"""

from vit_finetune.preflight.outcome import CheckResult
from vit_finetune.preflight.story import check, check_before_training

__all__ = ["CheckResult", "check", "check_before_training"]
