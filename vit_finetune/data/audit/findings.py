"""What a check of a data set found: one record for every kind of fault, and the verdict over all of them.

The table here is the whole of it: code, severity, what it means, what to do. docs/preflight.md repeats it for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

MAX_EXAMPLES = 1000  # of one finding that are kept; how many there are is always exact


class Severity(IntEnum):
    """How bad a finding is."""

    NOTE = 0
    WARNING = 1
    STOP = 2


class Kind(NamedTuple):
    """A kind of fault: how bad it is, what it means and what to do."""

    severity: Severity
    what: str
    remedy: str


_STOP, _WARNING, _NOTE = Severity.STOP, Severity.WARNING, Severity.NOTE
KINDS: dict[str, Kind] = {
    "no_data": Kind(_STOP, "the data set cannot be opened", "do what the message says"),
    "unlisted_folder": Kind(_STOP, "folders that cannot be listed", "give yourself the right to read them"),
    "bad_name": Kind(_STOP, "file names that are not UTF-8", "rename them"),
    "loose_pictures": Kind(_STOP, "pictures outside of any class folder", "move each into the folder of its class"),
    "empty_class": Kind(_STOP, "class folders without pictures", "fill or remove them"),
    "one_class": Kind(_STOP, "fewer than two classes to train on", "a classifier needs two, one folder or label each"),
    "class_not_in_train": Kind(_STOP, "classes in val or test that train does not have", "add pictures, or rename"),
    "unreadable": Kind(_STOP, "files that cannot be read", "give yourself the right to read them, or remove them"),
    "empty_file": Kind(_STOP, "files without a byte", "fetch them again, or remove them"),
    "not_a_picture": Kind(_STOP, "files that are not pictures", "convert or remove them"),
    "bomb": Kind(_STOP, "pictures beyond Pillow's limit against decompression bombs", "make them smaller or remove"),
    "damaged": Kind(_STOP, "pictures that cannot be decoded", "fetch them again, or remove them"),
    "disk": Kind(_STOP, "not enough room on the disk", "free some, lower checkpoint.keep_last, or move run.dir"),
    "memory": Kind(_STOP, "not enough memory", "lower model.img_size or train.per_device_batch_size"),
    "dry_run": Kind(_STOP, "the recipe does not run", "do what the message says"),
    "non_finite": Kind(_STOP, "the loss or a gradient of the first batch is not finite", "use mixed_precision: no"),
    "class_not_in_val": Kind(_WARNING, "classes that are trained but not validated", "add val pictures of them"),
    "class_not_in_test": Kind(_WARNING, "classes that are trained but not tested", "add test pictures of them"),
    "one_picture_class": Kind(_WARNING, "classes with a single training picture", "add pictures, or join classes"),
    "similar_names": Kind(_WARNING, "classes whose names are nearly the same", "join them if they are one class"),
    "imbalance": Kind(_WARNING, "the largest class is more than 10 times the smallest", "look at macro_accuracy"),
    "duplicate_across_splits": Kind(
        _WARNING, "the same file in several splits", "remove one: figures of val and test are too good"
    ),
    "duplicate_conflict": Kind(_WARNING, "the same file with different labels", "keep the one that is right"),
    "near_duplicate_across_splits": Kind(
        _WARNING, "nearly the same picture in several splits", "remove one: figures of val and test are too good"
    ),
    "near_duplicate_conflict": Kind(
        _WARNING, "nearly the same picture with different labels", "keep the one that is right"
    ),
    "label_error": Kind(_WARNING, "labels that are probably wrong", "look at them, the first ones first"),
    "label_disagrees": Kind(_WARNING, "a label that is not the class its folder names", "correct one of them"),
    "animated": Kind(_WARNING, "animations and files of several pages", "only the first frame counts; extract others"),
    "large_picture": Kind(_WARNING, "very large pictures, which make every epoch slow", "make them smaller"),
    "blank": Kind(_WARNING, "pictures of a single colour", "remove them"),
    "extreme_aspect": Kind(_WARNING, "pictures 5 times as long as wide, or more", "crop them, or see data.crop_mode"),
    "link_loop": Kind(_WARNING, "links that lead back to a folder above", "remove them; they are not followed"),
    "normalisation": Kind(
        _WARNING, "colours far from what the checkpoint is normalised for", "try data.mean and data.std of the data"
    ),
    "duplicate": Kind(_NOTE, "the same file several times in one split, with one label", "remove all but one"),
    "near_duplicate": Kind(_NOTE, "nearly the same picture in one split, with one label", "nothing, if on purpose"),
    "wrong_extension": Kind(_NOTE, "files of another format than their ending says", "nothing: the content counts"),
    "rotated": Kind(_NOTE, "pictures with an EXIF rotation", "nothing: it is applied, everywhere"),
    "colour_modes": Kind(_NOTE, "pictures that are not plain RGB", "nothing: all become RGB"),
    "extra_files": Kind(_NOTE, "files that are no pictures, or hidden", "nothing: they are left out"),
    "unread_folders": Kind(_NOTE, "folders beside the splits that nobody reads", "name them as a split if they are"),
    "not_checked": Kind(_NOTE, "a check that was left out", "see why"),
}


class Example(NamedTuple):
    """One case of a fault.

    Attributes:
        name: what people call it; printable, on one line.
        note: what is to be said about it.
        places: pictures to show, as (split, index).
    """

    name: str
    note: str = ""
    places: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Finding:
    """One kind of fault that a data set has.

    Attributes:
        code: a key of `KINDS`.
        severity: how bad it is.
        what: what it is, for people.
        how_many: cases.
        examples: the first of them.
    """

    code: str
    severity: Severity
    what: str
    how_many: int
    examples: tuple[Example, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "code": self.code,
            "severity": self.severity.name.lower(),
            "what": self.what,
            "how_many": self.how_many,
            "what_to_do": KINDS[self.code].remedy,
            "examples": [{"name": example.name, "note": example.note} for example in self.examples],
        }


def found(code: str, examples: Iterable[Example], *, what: str = "") -> list[Finding]:
    """Return the finding of a kind, or none where there is no case.

    Args:
        code: a key of `KINDS`.
        examples: every case.
        what: what is to be said instead of the kind's own words.
    """
    cases = list(examples)
    if not cases:
        return []
    kind = KINDS[code]
    return [Finding(code, kind.severity, what or kind.what, len(cases), tuple(cases[:MAX_EXAMPLES]))]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with the worst first, then in the order of the table."""
    order = list(KINDS)
    return sorted(findings, key=lambda finding: (-finding.severity, order.index(finding.code)))


def verdict(findings: Sequence[Finding]) -> str:
    """Return `go`, `go with warnings` or `stop`."""
    worst = max((finding.severity for finding in findings), default=Severity.NOTE)
    return {Severity.NOTE: "go", Severity.WARNING: "go with warnings", Severity.STOP: "stop"}[worst]


def printable(name: str) -> str:
    """Return a name on one line that any terminal and file takes: what cannot be printed is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
