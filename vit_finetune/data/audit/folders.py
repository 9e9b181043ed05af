"""What is wrong with a folder of pictures before a picture is opened, found without stopping at the first fault.

The layouts are those of sources.py: `root/SPLIT/CLASS/...` or `root/CLASS/...`. Where `load_splits` would refuse the
folder, its pictures are returned all the same, so that everything else about them can be told at once.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_finetune.common.errors import RequestError
from vit_finetune.data.audit.findings import Example, Finding, Severity, found, printable
from vit_finetune.data.image_set import FileStore, ImageSet, Splits
from vit_finetune.data.labels import encode_labels
from vit_finetune.data.scan import Scan, natural_key, scan_folder
from vit_finetune.data.sources import val_names


@dataclass(frozen=True)
class Folders:
    """A folder of pictures as it lies there.

    Attributes:
        findings: what is wrong with folders and names.
        splits: every picture in a class folder, under one class map over all splits; None where there is none in
            train. Nothing is held out here.
    """

    findings: list[Finding]
    splits: Splits | None

    @property
    def is_refused(self) -> bool:
        """Tell whether `load_splits` would stop at what was found."""
        return any(finding.severity is Severity.STOP for finding in self.findings)


def check_folders(root: Path, *, train_split: str, val_split: str | None, test_split: str | None) -> Folders:
    """List a folder of pictures and say what is wrong with its folders and names.

    Args:
        root: the folder.
        train_split: see `load_splits`, as all of these.
        val_split: the same.
        test_split: the same.

    Raises:
        RequestError: there is no such folder, or it has neither layout.
    """
    try:
        beside, layout = _layout(root, train_split, val_split, test_split)
        scans = {split: scan_folder(root / folder, strict=False) for split, folder in layout.items()}
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"cannot list the data folder {printable(str(root))}: {reason}") from error
    findings: list[Finding] = []
    for check in (_unlisted, _loose, _empty, _bad_names, _loops, _extra):
        findings += found(*check(layout, scans))
    findings += found("unread_folders", [Example(printable(name)) for name in beside])
    return Folders(findings, _splits(root, layout, scans))


def _layout(
    root: Path, train_split: str, val_split: str | None, test_split: str | None
) -> tuple[list[str], dict[str, str]]:
    """Return the folders that nobody reads, and of train, val and test the folder below the root ("" is the root)."""
    with os.scandir(root) as entries:
        folders = sorted((entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."), key=natural_key)
    inside = root / train_split
    if not inside.is_dir() or not any(entry.is_dir() for entry in os.scandir(inside)):
        return [], {"train": ""}
    layout = {"train": train_split}
    for name in [name for name in val_names(val_split, test_split) if (root / name).is_dir()][:1]:
        layout["val"] = name
    if test_split is not None and (root / test_split).is_dir():
        layout["test"] = test_split
    read = {Path(name).parts[0] for name in layout.values()}
    return [name for name in folders if name not in read], layout


Check = tuple[str, list[Example]]


def _unlisted(layout: dict[str, str], scans: dict[str, Scan]) -> Check:
    return "unlisted_folder", [
        Example(_below(layout[split], name), reason) for split, scan in scans.items() for name, reason in scan.unlisted
    ]


def _loose(layout: dict[str, str], scans: dict[str, Scan]) -> Check:
    return "loose_pictures", [
        Example(_below(layout[split], name)) for split, scan in scans.items() for name in scan.names if "/" not in name
    ]


def _empty(layout: dict[str, str], scans: dict[str, Scan]) -> Check:
    return "empty_class", [Example(_below(layout[split], name)) for split, scan in scans.items() for name in scan.empty]


def _bad_names(layout: dict[str, str], scans: dict[str, Scan]) -> Check:
    return "bad_name", [
        Example(_below(layout[split], name)) for split, scan in scans.items() for name in scan.names if _is_bad(name)
    ]


def _loops(layout: dict[str, str], scans: dict[str, Scan]) -> Check:
    cases = []
    for split, scan in scans.items():
        cases += [Example(_below(layout[split], ""), "a link to a folder above it")] * scan.num_loops
    return "link_loop", cases


def _extra(layout: dict[str, str], scans: dict[str, Scan]) -> Check:
    cases = []
    for split, scan in scans.items():
        cases += [Example(_below(layout[split], ""), "no picture by its ending")] * scan.num_other
        cases += [Example(_below(layout[split], ""), "hidden")] * scan.num_hidden
    return "extra_files", cases


def _below(folder: str, name: str) -> str:
    return printable("/".join(part for part in (folder, name) if part) or ".")


def _is_bad(name: str) -> bool:
    """Tell whether a name has bytes that are not UTF-8, which Python keeps as lone surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _splits(root: Path, layout: dict[str, str], scans: dict[str, Scan]) -> Splits | None:
    """Return the pictures that have a class and a name, labelled under one class map: train's classes come first."""
    names = {split: [name for name in scan.names if "/" in name and not _is_bad(name)] for split, scan in scans.items()}
    classes = {
        split: [unicodedata.normalize("NFC", name.rpartition("/")[0]) for name in part] for split, part in names.items()
    }
    if not classes["train"]:
        return None
    class_names: Sequence[str] = sorted(set(classes["train"]), key=natural_key)
    others = {label for part in classes.values() for label in part} - set(class_names)
    class_names = (*class_names, *sorted(others, key=natural_key))
    sets = {
        split: ImageSet(
            FileStore(root, tuple(f"{layout[split]}/{name}".lstrip("/") for name in part)),
            encode_labels(classes[split], class_names),
        )
        for split, part in names.items()
    }
    return Splits(train=sets["train"], val=sets.get("val"), test=sets.get("test"), class_names=tuple(class_names))
