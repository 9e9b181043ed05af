"""A check from a recipe to a verdict, top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vit_finetune.common.errors import RequestError
from vit_finetune.common.seeding import derive_seed
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.audit.files import FAULTS, check_colours
from vit_finetune.data.audit.findings import Example, Severity, found, verdict, worst_first
from vit_finetune.preflight.looking import Look, Say, look
from vit_finetune.preflight.outcome import CheckResult
from vit_finetune.preflight.rehearsal import Rehearsal
from vit_finetune.preflight.report import finding_lines, write_report
from vit_finetune.preflight.suspects import suspect_labels
from vit_finetune.training import check_run_folder, set_threads, start_accelerator
from vit_finetune.training.launch import launched_by_us

if TYPE_CHECKING:
    from accelerate import Accelerator

LEVELS = ("quick", "full")


def check(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    level: str = "quick",
    output: str | Path | None = None,
    data: Splits | None = None,
    say: Say = print,
) -> CheckResult:
    """Check a recipe and its data, and write nothing but the report.

    Args:
        config: a Config, a mapping of its sections, a YAML file or the name of a shipped recipe.
        level: quick reads every file and looks at names, headers, hashes and classes; full decodes every picture too,
            looks for nearly equal ones, judges the labels by the recipe's network and tries one batch.
        output: a folder for check.json, check.html and, at the full level, labels.csv; an earlier report is replaced.
        data: the pictures; None opens those of the configuration.
        say: told how far the work is.

    Returns:
        The findings and the verdict.

    Raises:
        RequestError: the configuration is wrong, the data set is not there, or `output` is no report's folder.
    """
    if level not in LEVELS:
        raise RequestError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    config = Config.load(config)
    if config.data.streaming:
        raise RequestError(
            "a check reads every picture, and data.streaming fetches them as training needs them; check a part of the "
            "data that lies on a disk"
        )
    seen = look(config, pixels=level == "full", data=data, say=say)
    figures: Mapping[str, Any] = {}
    ranking: list[dict[str, Any]] = []
    if level == "full":
        if seen.splits is None or any(finding.severity is Severity.STOP for finding in seen.findings):
            reason = "training would stop at what was found; repair that first"
            seen.findings += found("not_checked", [Example(what, reason) for what in ("labels", "dry run")])
        else:
            figures, ranking = _with_network(config, seen, seen.splits, say)
    result = CheckResult(
        level=level,
        verdict=verdict(seen.findings),
        findings=worst_first(seen.findings),
        figures=figures,
        ranking=ranking,
        pace=seen.pace.line(),
        seconds=seen.seconds,
        splits=seen.splits,
        facts=seen.facts,
    )
    if output is not None:
        write_report(result, Path(output))
    return result


def _with_network(
    config: Config, seen: Look, splits: Splits, say: Say
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """Do what needs the recipe's network: the dry run, the colours it expects, and the labels."""
    accelerator = _accelerator(config)
    started = time.perf_counter()
    torch.manual_seed(derive_seed(config.run.seed, "init"))
    rehearsal = Rehearsal(config, splits, accelerator)
    seen.findings += rehearsal.findings
    seen.seconds["dry run"] = time.perf_counter() - started
    if rehearsal.preprocess is None:
        return rehearsal.figures, []
    seen.findings += check_colours(seen.facts["train"], rehearsal.preprocess)
    say(f"labels   reading the features of {len(splits.train):,} pictures, unless they are kept")
    started = time.perf_counter()
    suspects = suspect_labels(config, splits, seen.facts["train"], accelerator)
    seen.findings += suspects.findings
    seen.seconds["labels"] = time.perf_counter() - started
    return rehearsal.figures, suspects.ranking


def _accelerator(config: Config) -> Accelerator:
    """Return where the run would run, with its precision and threads."""
    set_threads(config.run.num_threads)
    return start_accelerator(
        device=config.run.device,
        mixed_precision=config.train.mixed_precision,
        trackers=(),
        run_dir=Path(config.run.dir),
        deterministic=config.run.deterministic,
    )


def check_before_training(config: Config, *, resume: bool, overwrite: bool = False, say: Say = print) -> None:
    """Check the data at the quick level before a run starts, where the recipe wants that.

    One process of a run does it. A run that goes on was checked when it began.

    Args:
        config: of the run.
        resume: the run goes on, where there is one.
        overwrite: the run in `run.dir` is replaced.
        say: told what was found.

    Raises:
        RequestError: training would stop at what was found, or cannot have its folder.
    """
    is_first = os.environ.get("RANK", "0") == "0" and not launched_by_us()
    if config.run.check == "off" or config.data.streaming or not is_first:
        return
    values = config.model_dump(mode="json")
    if check_run_folder(Path(config.run.dir), values, resume=resume, overwrite=overwrite):
        return
    result = check(config, say=say)
    faults: list[str] = []
    for finding in result.findings:
        # How many pictures may be bad is decided as the manifest is written, with the same words for all of them.
        may_be_left_out = finding.code in FAULTS and config.data.on_bad_image != "error"
        if finding.severity is Severity.STOP and not may_be_left_out:
            faults.append(finding_lines(finding)[0])
        elif finding.severity is not Severity.NOTE:
            say(f"check    {finding_lines(finding)[0]}")
    if faults:
        raise RequestError(
            f"the data would stop this run: {'; '.join(faults)}; repair it, look at `vit-finetune check`, or start "
            "with run.check=off"
        )
    say(f"check    {result.verdict}: {result.pace}")
