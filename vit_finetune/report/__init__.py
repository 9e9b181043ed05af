"""The report of a run, and the comparison of several: pages and lines written from what the runs saved."""

from vit_finetune.report.at_end import report_at_end
from vit_finetune.report.comparing import Comparison, compare_runs
from vit_finetune.report.comparison_page import check_page, comparison_lines, write_comparison
from vit_finetune.report.page import REPORT_FILE, write_report

__all__ = [
    "REPORT_FILE",
    "Comparison",
    "check_page",
    "compare_runs",
    "comparison_lines",
    "report_at_end",
    "write_comparison",
    "write_report",
]
