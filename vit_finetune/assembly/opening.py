"""The folder of a run, and its manifest, before the first step: all of it there, or none of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_json, write_text
from vit_finetune.common.layout import MANIFEST
from vit_finetune.config import Config
from vit_finetune.data import Splits
from vit_finetune.data.manifest import manifest_difference, write_manifest
from vit_finetune.training import new_run_folder
from vit_finetune.training.checkpoint import newest_whole, read_state, save_start


def _pending_manifest(run_dir: Path) -> Path:
    """Where the manifest waits until the run's folder may be made: nothing is left where a picture is bad."""
    return run_dir.with_name(f".{run_dir.name}.manifest.parquet")


def prepare_manifest(splits: Splits, config: Config, *, resuming: bool) -> tuple[str, list[str]]:
    """Read and check every picture once; return the digest of them all, and what to tell about it.

    Args:
        splits: the pictures.
        config: beside its `run.dir` the manifest waits until `open_run_folder`; how many pictures may be bad, and
            whether they may be others than a run to be resumed began with.
        resuming: the run has its manifest already.

    Raises:
        RequestError: pictures that cannot be read, or more of them than allowed; or other pictures than before.
    """
    run_dir = Path(config.run.dir)
    pending = _pending_manifest(run_dir)
    digest = write_manifest(splits, pending, max_bad_fraction=config.data.bad_fraction_allowed)
    if not resuming:
        return digest, []
    try:
        difference = _accepted_difference(run_dir, config, digest)
    except RequestError:
        pending.unlink()
        raise
    told = [] if difference is None else [f"resume: goes on with other data, as data.on_change says: {difference}"]
    if not (run_dir / MANIFEST).is_file():
        told.append(f"resume: {run_dir / MANIFEST} is gone and written anew")
    elif difference is None:
        pending.unlink()
    return digest, told


def _accepted_difference(run_dir: Path, config: Config, digest: str) -> str | None:
    """Say how the pictures differ from those that the run began with, or refuse them; None where they are the same."""
    difference = _difference(run_dir, digest)
    if difference is not None and config.data.on_change == "error":
        raise RequestError(
            f"{run_dir} was started with other data: {difference}; put that back, start another run.dir, or go on with "
            "data.on_change=accept"
        )
    return difference


def _difference(run_dir: Path, digest: str) -> str | None:
    """Say how the pictures differ, by the run's manifest, or, where that is gone, by its newest checkpoint's digest."""
    if (run_dir / MANIFEST).is_file():
        return manifest_difference(run_dir / MANIFEST, _pending_manifest(run_dir))
    step, _ = newest_whole(run_dir / "checkpoints")
    if step is None or read_state(run_dir / "checkpoints", step)["data"] == digest:
        return None  # the same, or nothing has been learned from any
    return f"{MANIFEST} is gone, so which pictures is not known"


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
        resuming: the folder is there already; only the facts are written, and the manifest of changed data.
    """
    pending = _pending_manifest(run_dir)
    if not resuming:
        with new_run_folder(run_dir) as folder:
            write_text(folder / "config.yaml", config.to_yaml())
            pending.replace(folder / MANIFEST)
            if start is not None:
                save_start(folder, start)
    elif pending.is_file():
        pending.replace(run_dir / MANIFEST)
    for name, values in facts.items():
        write_json(run_dir / f"{name}.json", values)
