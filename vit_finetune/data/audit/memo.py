"""What earlier checks know about files, so that a check that was killed, or is repeated, reads only what is new.

A line is added for every file; a file is known by its path, size and time of change. Several processes may add to one
memo: a line is written in one piece, of two about one file the later counts, and half a line is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_finetune.common.entries import default_cache_dir

_FORMAT = 1  # raised when the same file would give other facts than before


def facts_file(place: str | Path) -> Path:
    """Return where facts about the files of a data set are kept.

    Args:
        place: its folder, or the file that lists its pictures.
    """
    name = hashlib.sha256(ascii(str(Path(place).expanduser().resolve())).encode()).hexdigest()[:16]
    return default_cache_dir("facts") / f"{name}.jsonl"


class Memo:
    """A file of facts.

    Args:
        path: the file; None remembers nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        # Lines as they are, since a million of them in pieces would fill the memory: stamp -> (pixels, line).
        self._known: dict[str, tuple[bool, bytes]] = {}
        if path is not None and path.is_file():
            with path.open("rb") as file:
                for line in file:
                    self._learn(line)

    def _learn(self, line: bytes) -> None:
        try:
            version, stamp, pixels, _ = json.loads(line)
        except ValueError:
            return
        if version == _FORMAT and not (self._known.get(stamp, (False,))[0] and not pixels):
            self._known[stamp] = (pixels, line)

    def get(self, stamp: str, *, pixels: bool) -> dict[str, Any] | None:
        """Return what is known about a file, or None.

        Args:
            stamp: what it is known by; empty for what has no stamp.
            pixels: its pixels must have been looked at.
        """
        known = self._known.get(stamp) if stamp else None
        if known is None or (pixels and not known[0]):
            return None
        facts: dict[str, Any] = json.loads(known[1])[3]
        return facts

    def add(self, facts: Mapping[str, Mapping[str, Any]], *, pixels: bool) -> None:
        """Remember facts about files by their stamp.

        Args:
            facts: JSON values by stamp; those without one are not kept.
            pixels: their pixels were looked at.
        """
        if self._path is None:
            return
        lines = [json.dumps([_FORMAT, stamp, pixels, dict(fact)]) + "\n" for stamp, fact in facts.items() if stamp]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            file.write("".join(lines).encode())
