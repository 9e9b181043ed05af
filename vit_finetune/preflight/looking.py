"""The quick level of a check: folders, classes, files and copies; no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.config import Config, DataConfig
from vit_finetune.data import Splits
from vit_finetune.data.audit.classes import check_classes, check_folder_names
from vit_finetune.data.audit.copies import check_copies
from vit_finetune.data.audit.facts import Pace, PictureFacts, read_facts
from vit_finetune.data.audit.files import check_files
from vit_finetune.data.audit.findings import Example, Finding, Severity, found, printable
from vit_finetune.data.audit.folders import check_folders
from vit_finetune.data.audit.memo import Memo, facts_file
from vit_finetune.data.table_file import lists_pictures
from vit_finetune.pictures import open_splits

Say = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Look:
    """What was seen of a data set.

    Attributes:
        splits: its pictures, also those that training would refuse; None where there are none.
        findings: what is wrong.
        facts: of every picture of each split.
        pace: how fast the files were read.
        seconds: what each part took.
    """

    splits: Splits | None
    findings: list[Finding]
    facts: Mapping[str, Sequence[PictureFacts]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    seconds: dict[str, float] = field(default_factory=dict)


def look(config: Config, *, pixels: bool, data: Splits | None = None, say: Say) -> Look:
    """Look at the pictures of a configuration.

    Args:
        config: of the run.
        pixels: decode every picture, too.
        data: the pictures; None opens those of the configuration.
        say: told how far the work is.

    Raises:
        RequestError: the folder or the data set is not there.
    """
    started = time.perf_counter()
    seen = _open(config) if data is None else Look(data, [])
    seen.seconds["folders"] = time.perf_counter() - started
    splits = seen.splits
    if splits is None:
        return seen
    is_folder = data is None and config.data.source is None
    if not is_folder:
        seen.findings += check_classes(splits) + check_folder_names(splits)
    memo = Memo(None if data is not None else _memo_file(config.data))
    seen.facts = {
        split: read_facts(pictures, pixels=pixels, memo=memo, pace=seen.pace, tell=_teller(say, split, len(pictures)))
        for split, pictures in splits.named()
    }
    seen.seconds["files"] = seen.pace.seconds
    started = time.perf_counter()
    seen.findings += check_files(splits, seen.facts) + check_copies(splits, seen.facts)
    seen.seconds["copies"] = time.perf_counter() - started
    return seen


def _open(config: Config) -> Look:
    """Open the pictures; where training would refuse a folder, take it as it lies there."""
    section = config.data
    if section.root is None or section.source is not None:
        return Look(open_splits(section, seed=config.run.seed), [])
    folders = check_folders(
        Path(section.root).expanduser(),
        train_split=section.train_split,
        val_split=section.val_split,
        test_split=section.test_split,
    )
    splits, findings, refusal = folders.splits, list(folders.findings), ""
    if not folders.is_refused:
        try:
            splits = open_splits(section, seed=config.run.seed)
        except RequestError as error:
            refusal = str(error)
    findings += [] if splits is None else check_classes(splits)
    if refusal and not any(finding.severity is Severity.STOP for finding in findings):
        if splits is None:
            raise RequestError(refusal)
        findings += found("no_data", [Example(printable(refusal))])
    return Look(splits, findings)


def _memo_file(section: DataConfig) -> Path | None:
    """Return where facts about the files of a folder or a list are kept; tables have no files to know again."""
    place = section.source or section.root
    if place is None or (section.source is not None and not lists_pictures(section.source)):
        return None
    return facts_file(place)


def _teller(say: Say, split: str, count: int) -> Callable[[int], None]:
    """Return what says now and then how many pictures of a split are read."""
    spoke = time.monotonic()

    def tell(done: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= _SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            say(f"files    {split}: {done:,} of {count:,}")

    return tell
