"""Where a run comes from: the exact command, configuration, weights, plan, machine and hashes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from vit_finetune.common.files import sha256_file
from vit_finetune.report.data_card import DataCard
from vit_finetune.report.run_folder import RunFolder

_HASHED = ("config.yaml", "model/model.safetensors", "predictions.parquet")


@dataclass(frozen=True)
class Weights:
    """What was loaded.

    Attributes:
        source: where the weights came from.
        architecture: timm's name of the network.
        num_loaded: tensors that hold the file's values.
        resampled: (name, what was done).
        dropped: (name, reason).
        new: names that the file had nothing for.
        notes: sentences.
        assumed: fields of the preprocessing that no source told.
    """

    source: str
    architecture: str
    num_loaded: int
    resampled: Sequence[tuple[str, str]]
    dropped: Sequence[tuple[str, str]]
    new: Sequence[str]
    notes: Sequence[str]
    assumed: Sequence[str]


def weights_of(run: RunFolder) -> Weights | None:
    """Return what was loaded, resampled and newly initialised; None where the run did not write it down."""
    told = run.load_report
    if not told:
        return None
    return Weights(
        source=str(told["source"]),
        architecture=str(told["architecture"] or "a ViT"),
        num_loaded=len(told["loaded"]),
        resampled=list(told["resampled"].items()),
        dropped=list(told["dropped"].items()),
        new=told["newly_initialized"],
        notes=told["notes"],
        assumed=told["preprocess"].get("assumed", ()),
    )


def command_of(run: RunFolder) -> str:
    """Return what was typed, ready for a shell; empty where the run did not write it down."""
    words = [str(word) for word in run.environment.get("command", ())]
    if not words:
        return ""
    program = PurePath(words[0])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", program.parent.name, *words[1:]])
    if program.suffix == ".py":
        return shlex.join(["python", *words])
    return shlex.join([program.name or "python", *words[1:]])


def hashes_of(run: RunFolder, card: DataCard | None) -> list[tuple[str, str]]:
    """Return what identifies the run: SHA-256 of its files, and the digest of its pictures."""
    found = [(name, sha256_file(run.path / name)) for name in _HASHED if (run.path / name).is_file()]
    return [*found, *([("the pictures, with labels and order", card.digest)] if card is not None else [])]


def plain(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as rows of section.key and text, without those that are None or empty.

    Args:
        values: plain JSON values.
        prefix: of the keys.
    """
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += plain(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            for number, part in enumerate(value, start=1):
                rows += plain(part, f"{prefix}{key}.{number}.")
        elif value not in (None, "", [], ()):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else _told(value)
            rows.append((f"{prefix}{key}", text))
    return rows


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan_of(run: RunFolder) -> list[tuple[str, str]]:
    """Return the derived numbers of the run; of a run under a budget without the copy of the configuration."""
    return plain({key: value for key, value in run.plan.items() if key not in ("config", "decisions", "took", "pace")})


def environment_of(run: RunFolder) -> list[tuple[str, str]]:
    """Return machine and versions."""
    return plain({key: value for key, value in run.environment.items() if key != "command"})


def config_text(run: RunFolder) -> str:
    """Return config.yaml as it stands."""
    return Path(run.path / "config.yaml").read_text(encoding="utf-8")
