"""The report at the end of a run: written where the recipe wants one, and never a reason for a finished run to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_finetune.config import Config
from vit_finetune.report.page import write_report

if TYPE_CHECKING:
    from vit_finetune.data import Splits


def report_at_end(config: Config, splits: Splits) -> list[str]:
    """Write the report of a run that has just ended, and return what to say about it.

    Args:
        config: of the run; nothing is written where `run.report` is off.
        splits: its pictures.
    """
    if config.run.report == "off":
        return []
    try:
        path = write_report(config.run.dir, splits=splits)
    except Exception as error:  # whatever it is: the training is done and saved, and a page is not worth its exit code
        told = str(error) or type(error).__name__
        return [f"report   not written: {told}; try again by: vit-finetune report {config.run.dir}"]
    return [f"report   {path}"]
