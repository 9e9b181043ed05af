"""What the run learned from and was scored on, as its manifest tells: splits, classes, balance, copies, sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vit_finetune.common.errors import RequestError
from vit_finetune.common.layout import MANIFEST
from vit_finetune.report.run_folder import RunFolder

_COLUMNS = ["split", "label", "num_bytes", "sha256", "width", "height", "mode"]


@dataclass(frozen=True)
class SplitCard:
    """One split.

    Attributes:
        name: train, val or test.
        num_pictures: of it.
        num_bytes: of its files; None where they were not fetched.
        counts: pictures of each class [K].
        num_unreadable: pictures without a size, which could not be opened.
    """

    name: str
    num_pictures: int
    num_bytes: int | None
    counts: Sequence[int]
    num_unreadable: int


@dataclass(frozen=True)
class DataCard:
    """The data of a run.

    Attributes:
        digest: of all pictures, their classes and their order.
        root: where they lay; empty where that is no folder.
        class_names: K names.
        splits: in the order train, val, test.
        num_copies: pictures whose very bytes stand in a split more than once, beyond the first.
        num_shared: pictures of val and test whose very bytes are in train too; None where bytes are not known.
        widths: smallest, median and largest; None where sizes are not known.
        heights: likewise.
        modes: pictures by how the file stores colours, the most frequent first.
    """

    digest: str
    root: str
    class_names: tuple[str, ...]
    splits: Sequence[SplitCard]
    num_copies: int
    num_shared: int | None
    widths: tuple[int, int, int] | None
    heights: tuple[int, int, int] | None
    modes: Mapping[str, int]

    def of(self, name: str) -> SplitCard | None:
        """Return a split, or None."""
        return next((card for card in self.splits if card.name == name), None)

    @property
    def imbalance(self) -> float | None:
        """Training pictures of the largest class over those of the smallest that has any."""
        train = self.of("train")
        occurring = [] if train is None else [number for number in train.counts if number]
        return max(occurring) / min(occurring) if occurring else None


def read_card(run: RunFolder) -> DataCard | None:
    """Return the data of a run; None where it has no manifest.

    Raises:
        RequestError: the manifest is damaged.
    """
    path = run.path / MANIFEST
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=_COLUMNS)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        names = tuple(json.loads(metadata["class_names"]))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    found = set(pc.unique(table["split"]).to_pylist())
    parts = {name: table.filter(pc.equal(table["split"], name)) for name in ("train", "val", "test") if name in found}
    hashes = {name: _known(part["sha256"]) for name, part in parts.items()}
    sized = table.filter(pc.greater(table["width"], 0))
    modes = {row["values"]: row["counts"] for row in pc.value_counts(sized["mode"]).to_pylist()}
    return DataCard(
        digest=metadata.get("manifest_hash", ""),
        root=metadata.get("root", ""),
        class_names=names,
        splits=[_split(name, part, len(names)) for name, part in parts.items()],
        num_copies=sum(len(values) - len(set(values)) for values in hashes.values()),
        num_shared=_shared(hashes) if len(sized) else None,
        widths=_spread(sized["width"]),
        heights=_spread(sized["height"]),
        modes=dict(sorted(modes.items(), key=lambda item: -item[1])),
    )


def _known(column: pa.ChunkedArray) -> list[str]:
    return [value for value in column.to_pylist() if value]


def _shared(hashes: Mapping[str, Sequence[str]]) -> int:
    train = set(hashes.get("train", ()))
    return sum(value in train for name, values in hashes.items() if name != "train" for value in values)


def _split(name: str, part: pa.Table, num_classes: int) -> SplitCard:
    """Return the card of one split."""
    labels = part["label"].combine_chunks()
    if pa.types.is_list(labels.type):
        labels = labels.flatten()
    counts = np.bincount(labels.to_numpy().astype(np.int64), minlength=num_classes)
    sizes = part["num_bytes"].to_numpy()
    fetched = bool((sizes >= 0).any())
    return SplitCard(
        name,
        len(part),
        int(sizes[sizes >= 0].sum()) if fetched else None,
        counts.tolist(),
        int((part["width"].to_numpy() < 0).sum()) if fetched else 0,
    )


def _spread(column: pa.ChunkedArray) -> tuple[int, int, int] | None:
    values = column.to_numpy()
    return (int(values.min()), int(np.median(values)), int(values.max())) if len(values) else None
