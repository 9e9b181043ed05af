"""The pictures that a report shows, from where they lie today; a picture that changed since the run is left out.

A run folder outlives its pictures: without them the report is the same, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.common.layout import MANIFEST
from vit_finetune.data.images import decode_image
from vit_finetune.pictures import run_splits
from vit_finetune.report.run_folder import RunFolder

if TYPE_CHECKING:
    from vit_finetune.data import Splits


@dataclass
class Pictures:
    """Pictures of one split by their place in it.

    Attributes:
        fetch: returns the bytes of a picture; None where nobody knows where they lie.
        hashes: the SHA-256 that each must have, by place.
        missing: how many could not be shown.
        reason: why not, for people; of the first.
    """

    fetch: Callable[[int], bytes] | None
    hashes: Mapping[int, str] = field(default_factory=dict)
    missing: int = 0
    reason: str = ""

    def read(self, index: int) -> Image.Image | None:
        """Return a picture in RGB, or None where it is gone, changed, or has no colours."""
        try:
            return decode_image(self._bytes(index))
        except (RequestError, OSError) as error:
            self.missing += 1
            self.reason = self.reason or str(error)
            return None

    def _bytes(self, index: int) -> bytes:
        if self.fetch is None:
            raise RequestError(self.reason)
        content = self.fetch(index)
        if hashlib.sha256(content).hexdigest() != self.hashes.get(index):
            raise RequestError("a file is not the one that the run saw")
        return content


def open_pictures(run: RunFolder, wanted: Iterable[int], *, splits: Splits | None, root: Path | None) -> Pictures:
    """Return the pictures of the scored split.

    Args:
        run: its manifest says names and hashes.
        wanted: places in the split of those that will be shown.
        splits: of the run, where they are open; None looks where the manifest says that they lie.
        root: look below this folder instead.
    """
    path = run.path / MANIFEST
    if not path.is_file():
        return Pictures(None, reason="the run has no manifest")
    chosen = [("split", "=", run.split), ("index", "in", sorted(set(wanted)))]
    rows = pq.read_table(path, columns=["index", "name", "sha256", "num_bytes"], filters=chosen).to_pylist()
    hashes = {row["index"]: row["sha256"] for row in rows}
    if any(row["num_bytes"] < 0 and row["sha256"] for row in rows):
        return Pictures(None, reason="they are streamed, and a report fetches nothing")
    if splits is not None and root is None:
        return Pictures(dict(splits.named())[run.split].store.read, hashes)
    told = (pq.read_schema(path).metadata or {}).get(b"root")
    if root is None and told is None:
        return _from_source(run, hashes)
    below = root or Path((told or b"").decode())
    names = {row["index"]: row["name"] for row in rows}
    return Pictures(lambda index: (below / names[index]).read_bytes(), hashes)


def _from_source(run: RunFolder, hashes: Mapping[int, str]) -> Pictures:
    """Return pictures that lie in tables, where these are files of this machine."""
    source = (run.config.get("data") or {}).get("source")
    if source is None or not Path(source).exists():
        return Pictures(None, hashes, reason="they do not lie in a folder of this machine")
    try:
        return Pictures(dict(run_splits(run.path).named())[run.split].store.read, hashes)
    except RequestError as error:
        return Pictures(None, hashes, reason=str(error))
