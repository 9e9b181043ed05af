"""What exactly was trained on: every picture of every split, with its hash.

The manifest is read before step 1, which is also where an unreadable file is found, and again at
resume, which notices changed data. Pixels are not decoded here: a file that begins well and ends
too early is found when it is trained on.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import atomic_file
from vit_finetune.data.bad_images import is_bad_image
from vit_finetune.data.image_set import BlockStore, FileStore, ImageSet, Splits
from vit_finetune.data.images import check_header

_NUM_THREADS = 8  # reading waits for disks, and hashing lets go of the interpreter
_MAX_ERRORS_SHOWN = 5
_COLUMNS = ("split", "index", "name", "label", "class_name", "num_bytes", "sha256", "width", "height", "mode")
_NUM_DIGESTED = 7  # the columns that the digest is of; what follows from a picture's bytes adds nothing
_Entry = tuple[str, int, str, int | list[int], str | list[str], int, str, int, int, str]


def write_manifest(splits: Splits, path: Path, *, max_bad_fraction: float | None = None) -> str:
    """Write the manifest of a data set as parquet, whole or not at all.

    Args:
        splits: the data set; every file is read once.
        path: the file to write. Columns: split (train, val, test), index (position in the split), name
            (below the root, or split#row), label, class_name (multi-label: lists), num_bytes, sha256, and width,
            height and mode as the file stores them; weight and group where the data tells them, null for the others.
            As `data.source` it gives back these splits. Streamed pictures are not fetched for it: num_bytes, width and
            height are -1, and sha256 is of the files' version and the picture's name.
        max_bad_fraction: share of a split's pictures that may be bad; they stand in the manifest like others, without
            a size and a mode, and without bytes with -1 and an empty hash. None allows none.

    Returns:
        The same digest as `manifest_hash`; it also stands in the file's metadata as `manifest_hash`.

    Raises:
        RequestError: more pictures that cannot be read than allowed, named.
    """
    entries = _read_entries(splits, max_bad_fraction)
    digest = _digest(entries, splits)
    columns: list[Any] = [list(column) for column in zip(*entries, strict=True)]
    known = _known(splits)
    metadata = {"manifest_hash": digest, "class_names": json.dumps(splits.class_names), **_origin(splits)}
    names = [*_COLUMNS, *known]
    table = pa.table([*columns, *known.values()], names=names).replace_schema_metadata(metadata)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)
    return digest


def _origin(splits: Splits) -> dict[str, str]:
    """Return where the pictures lie, for who opens the manifest as a data set."""
    roots = {images.store.root.absolute() for _, images in splits.named() if isinstance(images.store, FileStore)}
    return {"root": str(roots.pop())} if len(roots) == 1 else {}


def trained_on(path: Path) -> set[tuple[str, str]]:
    """Return (name, sha256) of every training picture of a manifest that was written.

    Args:
        path: of `write_manifest`.
    """
    rows = pq.read_table(path, columns=["split", "name", "sha256"]).to_pylist()
    return {(row["name"], row["sha256"]) for row in rows if row["split"] == "train"}


def manifest_hash(splits: Splits, *, max_bad_fraction: float | None = None) -> str:
    """Return a digest that changes with any picture's split, name, class or bytes, or with their order.

    Args:
        splits: the data set; every file is read once. Where it lies does not matter.
        max_bad_fraction: as for `write_manifest`.

    Returns:
        64 hexadecimal digits.

    Raises:
        RequestError: more pictures that cannot be read than allowed, named.
    """
    return _digest(_read_entries(splits, max_bad_fraction), splits)


def split_digests(path: Path) -> dict[str, str]:
    """Return for each split of a written manifest a digest of its pictures' bytes, in order; labels and names aside.

    Args:
        path: of `write_manifest`.
    """
    table = pq.read_table(path, columns=["split", "sha256"]).to_pydict()
    digests: dict[str, Any] = {}
    for split, sha256 in zip(table["split"], table["sha256"], strict=True):
        digests.setdefault(split, hashlib.sha256()).update(bytes.fromhex(sha256))
    return {split: digest.hexdigest() for split, digest in digests.items()}


def manifest_difference(before: Path, after: Path) -> str | None:
    """Say how the pictures of two written manifests differ, or None where they are the same in the same order.

    Args:
        before: of `write_manifest`.
        after: another.

    Raises:
        RequestError: they have other classes, so that a head for the one is none for the other.
    """
    (old, about_old), (new, about_new) = _by_name(before), _by_name(after)
    if about_old["manifest_hash"] == about_new["manifest_hash"]:
        return None
    classes = [tuple(json.loads(about["class_names"])) for about in (about_old, about_new)]
    if classes[0] != classes[1]:
        gone, come = ([name for name in one if name not in other] for one, other in (classes, classes[::-1]))
        named = [f"{what} {', '.join(names)}" for what, names in (("gone:", gone), ("new:", come)) if names]
        raise RequestError(
            f"the data has other classes than when the run began ({'; '.join(named) or 'in another order'}); "
            "start another run"
        )
    kinds = {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "changed": {key for key in old.keys() & new.keys() if old[key] != new[key]},
    }
    told = [f"{len(keys):,} {kind} (such as {min(keys)[1]})" for kind, keys in kinds.items() if keys]
    return ", ".join(told) or "the same pictures in another order"


def _by_name(path: Path) -> tuple[dict[tuple[str, str], Any], dict[str, str]]:
    """Return what a manifest says of each picture, by split and name, and of itself."""
    table = pq.read_table(path, columns=["split", "name", "label", "sha256"])
    rows = {(row["split"], row["name"]): (row["label"], row["sha256"]) for row in table.to_pylist()}
    return rows, {key.decode(): value.decode() for key, value in table.schema.metadata.items()}


def _read_entries(splits: Splits, max_bad_fraction: float | None) -> list[_Entry]:
    """Read and check every file, several at a time, and return the rows in order."""
    entries: list[_Entry] = []
    errors: list[RequestError] = []
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for split, images in splits.named():

            def read(index: int, split: str = split, images: ImageSet = images) -> tuple[_Entry, RequestError | None]:
                return _read_entry(split, images, index, splits.class_names)

            rows, found = zip(*pool.map(read, range(len(images))), strict=True) if len(images) else ((), ())
            entries.extend(rows)
            bad = [error for error in found if error is not None]
            if max_bad_fraction is None or len(bad) > max_bad_fraction * len(images):
                errors.extend(bad)
            else:
                errors.extend(error for error in bad if not is_bad_image(error))
    if errors:
        more = f"; and {len(errors) - _MAX_ERRORS_SHOWN:,} more" if len(errors) > _MAX_ERRORS_SHOWN else ""
        spent = "" if max_bad_fraction is None else f"; data.max_bad_fraction {max_bad_fraction:g} allows no more"
        raise RequestError("; ".join(str(error) for error in errors[:_MAX_ERRORS_SHOWN]) + more + spent)
    return entries


def _read_entry(
    split: str, images: ImageSet, index: int, class_names: tuple[str, ...]
) -> tuple[_Entry, RequestError | None]:
    """Return the row of one picture, and what is wrong with it."""
    told, wrong = _of_file(images, index)
    if images.is_multilabel:
        labels = images.labels[index].nonzero()[0].tolist()
        names = [class_names[label] for label in labels]
        return (split, index, images.store.key(index), labels, names, *told), wrong
    label = int(images.labels[index])
    return (split, index, images.store.key(index), label, class_names[label], *told), wrong


def _of_file(images: ImageSet, index: int) -> tuple[tuple[int, str, int, int, str], RequestError | None]:
    """Return bytes, hash, width, height and mode of a picture's file, and what is wrong with it."""
    if isinstance(images.store, BlockStore):
        version = f"{images.store.version} {images.store.key(index)}"
        return (-1, hashlib.sha256(version.encode()).hexdigest(), -1, -1, ""), None
    try:
        data = images.store.read(index)
    except RequestError as error:
        return (-1, "", -1, -1, ""), error
    digest = hashlib.sha256(data).hexdigest()
    try:
        header = check_header(data, name=images.name(index))
    except RequestError as error:
        return (len(data), digest, -1, -1, ""), error
    return (len(data), digest, header.width, header.height, header.mode), None


def _known(splits: Splits) -> dict[str, list[Any]]:
    """Return the columns of what the data tells beside: weights and groups; none for what it does not tell."""
    columns: dict[str, list[Any]] = {"weight": [], "group": []}
    for _, images in splits.named():
        nothing = [None] * len(images)
        columns["weight"] += nothing if images.weights is None else images.weights.tolist()
        columns["group"] += nothing if images.groups is None else images.groups
    return {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}


def _digest(entries: list[_Entry], splits: Splits) -> str:
    """Return the digest of the rows, independent of the parquet writer."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps(entry[:_NUM_DIGESTED]).encode() + b"\n")
    if splits.train.weights is not None:  # groups decide nothing once the pictures are split
        digest.update(json.dumps(splits.train.weights.tolist()).encode())
    return digest.hexdigest()
