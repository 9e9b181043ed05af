"""The folder of a run, and its manifest, before the first step: all of it there, or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_finetune.common.files import write_json, write_text
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.manifest import manifest_hash, write_manifest
from vit_finetune.training import new_run_folder
from vit_finetune.training.checkpoint import save_start


def _pending_manifest(run_dir: Path) -> Path:
    """Where the manifest waits until the run's folder may be made: nothing is left where a picture is bad."""
    return run_dir.with_name(f".{run_dir.name}.manifest.parquet")


def prepare_manifest(splits: Splits, config: Config, *, resuming: bool) -> str:
    """Read and check every picture once and return the digest of them all.

    Args:
        splits: the pictures.
        config: beside its `run.dir` a new run's manifest waits until the folder is made; how many may be bad.
        resuming: the run has its manifest already.

    Raises:
        RequestError: pictures that cannot be read, or more of them than allowed.
    """
    allowed = config.data.bad_fraction_allowed
    if resuming:
        return manifest_hash(splits, max_bad_fraction=allowed)
    return write_manifest(splits, _pending_manifest(Path(config.run.dir)), max_bad_fraction=allowed)


def open_run_folder(
    run_dir: Path,
    config: Config,
    facts: Mapping[str, Any],
    start: Mapping[str, Tensor] | None,
    *,
    resuming: bool,
) -> None:
    """Make the run's folder and write into it what is known before the first step.

    Args:
        run_dir: the folder.
        config: as it was given.
        facts: by name of a JSON file.
        start: the weights that the run begins with, where it needs them at its end.
        resuming: the folder is there already; only the facts are written.
    """
    if not resuming:
        with new_run_folder(run_dir) as folder:
            write_text(folder / "config.yaml", config.to_yaml())
            _pending_manifest(run_dir).replace(folder / "manifest.parquet")
            if start is not None:
                save_start(folder, start)
    for name, values in facts.items():
        write_json(run_dir / f"{name}.json", values)
