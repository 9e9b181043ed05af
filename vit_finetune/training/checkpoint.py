"""The state of a run on disk: atomic, verified, safetensors and JSON only.

    checkpoints/step-00001000/   model.safetensors optimizer.safetensors [ema.safetensors] state.json SHA256SUMS
    checkpoints/LATEST  BEST     text files that hold a folder name

A folder appears under its name only when it is complete and on the disk; the pointers follow by rename.
A run that was killed at any moment therefore finds its newest whole checkpoint, and a damaged one is
found by its hashes and named. Whatever is random in a run is a function of (seed, step), so no generator
state is stored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_finetune.common.errors import RequestError, WorkError
from vit_finetune.common.files import atomic_file, atomic_folder, sha256_file, write_json, write_text

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "ema.safetensors"
STATE_FILE = "state.json"
_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
SUMS_FILE = "SHA256SUMS"
START_FILE = "start.safetensors"
_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Attributes:
        model: the network's tensors.
        optimizer: the optimizer's.
        state: plain values.
        average: the averaged network's tensors; None where the run keeps no average.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] | None = None


def folder_name(step: int) -> str:
    """Return the folder of a step: `step-00001000`."""
    return f"{_PREFIX}{step:08d}"


def save_checkpoint(
    root: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    average: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint of a step, whole or not at all, and return its folder.

    Args:
        root: the run's `checkpoints` folder.
        step: steps done.
        model: the network's state dict.
        optimizer: of `optim.optimizer_tensors`.
        state: plain JSON values; `step` is added.
        average: the averaged network's state dict, or None.

    Raises:
        WorkError: the disk refused it; what was there before is untouched.
    """
    folder = root / folder_name(step)
    try:
        if folder.exists():  # resuming starts from the newest whole checkpoint, so one of a later step is damaged
            shutil.rmtree(folder)
        with atomic_folder(folder) as temporary:
            _save_tensors(model, temporary / MODEL_FILE)
            _save_tensors(optimizer, temporary / OPTIMIZER_FILE)
            if average is not None:
                _save_tensors(average, temporary / AVERAGE_FILE)
            write_json(temporary / STATE_FILE, {"step": step, **state})
            names = [*_FILES, *([] if average is None else [AVERAGE_FILE])]
            sums = (f"{sha256_file(temporary / name)}  {name}\n" for name in names)
            write_text(temporary / SUMS_FILE, "".join(sums))
    except (OSError, SafetensorError) as error:
        raise WorkError(f"cannot write the checkpoint {folder}: {error}; earlier checkpoints are untouched") from None
    return folder


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})


def save_start(run_dir: Path, model: Mapping[str, Tensor]) -> None:
    """Keep the weights that fine-tuning starts from, for WiSE-FT; a stage that starts later replaces them.

    Args:
        run_dir: the run's folder.
        model: the bare network's state dict.

    Raises:
        WorkError: the disk refused it.
    """
    try:
        with atomic_file(run_dir / START_FILE) as temporary:
            _save_tensors(model, temporary)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"cannot write {run_dir / START_FILE}: {error}") from None


def load_start(run_dir: Path) -> dict[str, Tensor]:
    """Read the weights that fine-tuning started from.

    Raises:
        RequestError: the run does not hold them.
    """
    path = run_dir / START_FILE
    if not path.is_file():
        raise RequestError(f"{path} is missing: train.wise_ft needs the weights that the run started from")
    return load_file(path)


def point_to(root: Path, pointer: str, step: int) -> None:
    """Make `LATEST` or `BEST` name the folder of a step, by rename.

    Raises:
        WorkError: the disk refused it; the pointer names what it named before.
    """
    try:
        write_text(root / pointer, folder_name(step) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write {root / pointer}: {error}; earlier checkpoints are untouched") from None


def pointed_step(root: Path, pointer: str) -> int | None:
    """Return the step that a pointer names, or None where there is none."""
    path = root / pointer
    if not path.is_file():
        return None
    return _step_of(path.read_text(encoding="utf-8").strip())


def _step_of(name: str) -> int | None:
    digits = name.removeprefix(_PREFIX)
    return int(digits) if name.startswith(_PREFIX) and digits.isdigit() else None


def saved_steps(root: Path) -> list[int]:
    """Return the steps that have a checkpoint folder, oldest first."""
    if not root.is_dir():
        return []
    return sorted(step for path in root.iterdir() if (step := _step_of(path.name)) is not None)


def remove_old(root: Path, *, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the best one; leftovers of killed writes go too.

    Raises:
        WorkError: the disk refused it.
    """
    keep = {*saved_steps(root)[-keep_last:], pointed_step(root, "BEST"), pointed_step(root, "LATEST")}
    for step in saved_steps(root):
        if step not in keep:
            try:
                shutil.rmtree(root / folder_name(step))
            except OSError as error:
                raise WorkError(f"cannot remove the checkpoint {root / folder_name(step)}: {error}") from None
    remove_leftovers(root)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writes left in a folder of the run; no write may be under way in it."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def settle(root: Path, *, step: int, best_step: int | None, keep_last: int) -> None:
    """Point to a checkpoint that is whole and remove old ones; said again it changes nothing.

    Args:
        root: the run's `checkpoints` folder.
        step: of the checkpoint that a run goes on from.
        best_step: of the best one so far, or None.
        keep_last: newest checkpoints to keep.

    Raises:
        WorkError: the disk refused it.
    """
    if best_step is not None:  # each time: a run that was killed before a pointer was renamed catches up
        point_to(root, "BEST", best_step)
    point_to(root, "LATEST", step)
    remove_old(root, keep_last=keep_last)


def damage(folder: Path) -> str | None:
    """Return what is wrong with each file of a checkpoint folder, or None where every hash agrees."""
    sums = folder / SUMS_FILE
    if not sums.is_file():
        return f"{SUMS_FILE} is missing"
    lines = [line.partition("  ") for line in sums.read_text(encoding="utf-8", errors="replace").splitlines()]
    expected = {name: digest for digest, _, name in lines}
    if not expected.keys() >= {*_FILES}:  # an empty list would otherwise prove anything
        return f"{SUMS_FILE} does not list {', '.join(name for name in _FILES if name not in expected)}"
    problems = []
    for name, digest in expected.items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256_file(folder / name) != digest:
            problems.append(f"{name} has another content than when it was written")
    return ", ".join(problems) or None


def damage_of_step(root: Path, step: int) -> str | None:
    """Return what is wrong with the checkpoint of a step, or None where it is whole."""
    folder = root / folder_name(step)
    return damage(folder) if folder.is_dir() else "the folder is missing"


def newest_whole(root: Path) -> tuple[int | None, list[str]]:
    """Find the newest checkpoint whose hashes agree.

    Args:
        root: the run's `checkpoints` folder.

    Returns:
        Its step, or None where there is no whole one; and a line for each damaged folder passed over.
    """
    notes: list[str] = []
    for step in reversed(saved_steps(root)):
        problem = damage(root / folder_name(step))
        if problem is None:
            return step, notes
        notes.append(f"{folder_name(step)} is damaged ({problem}) and was passed over")
    return None, notes


def read_state(root: Path, step: int) -> dict[str, Any]:
    """Return the plain values of a checkpoint.

    Args:
        root: the run's `checkpoints` folder.
        step: of a checkpoint that is there.
    """
    state: dict[str, Any] = json.loads((root / folder_name(step) / STATE_FILE).read_text(encoding="utf-8"))
    return state


def load_checkpoint(root: Path, step: int, *, verify: bool = True) -> Checkpoint:
    """Read the checkpoint of a step onto the CPU.

    Args:
        root: the run's `checkpoints` folder.
        step: steps done.
        verify: compare every file's hash first; false where that has just been done.

    Raises:
        RequestError: the folder is missing or damaged.
    """
    folder = _readable(root, step, verify=verify)
    state = read_state(root, step)
    average = load_file(folder / AVERAGE_FILE) if (folder / AVERAGE_FILE).is_file() else None
    return Checkpoint(load_file(folder / MODEL_FILE), load_file(folder / OPTIMIZER_FILE), state, average)


def load_weights(root: Path, step: int, *, averaged: bool) -> dict[str, Tensor]:
    """Read the weights of a step alone onto the CPU, when every file's hash was compared.

    Args:
        root: the run's `checkpoints` folder.
        step: steps done.
        averaged: those of the moving average, which the checkpoint has.

    Raises:
        RequestError: the folder is missing or damaged.
    """
    return load_file(_readable(root, step) / (AVERAGE_FILE if averaged else MODEL_FILE))


def _readable(root: Path, step: int, *, verify: bool = True) -> Path:
    """Return the folder of a step; refuse one that is missing or, where that is looked at, damaged."""
    folder = root / folder_name(step)
    problem = damage_of_step(root, step) if verify or not folder.is_dir() else None
    if problem is not None:
        raise RequestError(f"cannot read the checkpoint {folder}: {problem}")
    return folder
