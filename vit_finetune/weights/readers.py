"""Reading weight files without ever running what is inside them.

`.safetensors`, `.npz` and `.onnx` are data only. `.pth`, `.pt` and `.bin` are pickles: they go through torch's
restricted unpickler, which builds tensors and plain containers and refuses everything else; TorchScript archives have a
reader of their own. Files are memory-mapped where they allow it, so that reading costs nothing until a tensor is used.
This module doesn't know what the tensors mean.

Sources: the safetensors format (https://huggingface.co/docs/safetensors); `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.npz_reader import read_npz
from vit_finetune.weights.onnx_reader import read_onnx, without_wrapper
from vit_finetune.weights.torchscript_reader import is_torchscript, read_torchscript

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".npz", ".onnx")
# Averaged weights first, as timm loads them: they are what the training run was evaluated with.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
# Two networks of one training, the one that its authors evaluate first; which one is meant is for the user to say.
PAIRS = (("teacher", "student"), ("target_encoder", "encoder"))
PREFIXES = ("module.", "_orig_mod.")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself


@dataclass(frozen=True)
class FileContent:
    """What one or several weight files hold.

    Attributes:
        tensors: name to tensor, wrappers and wrapper prefixes removed.
        metadata: the safetensors header mapping; empty for pickles and shards.
        notes: what was unwrapped, one sentence each.
    """

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def split_part(path: Path) -> tuple[Path, str | None]:
    """Split `file.pth:teacher` into the file and the part of it that is meant, None where none is named."""
    file, colon, part = str(path).rpartition(":")
    return (path, None) if path.exists() or not colon or not part.isidentifier() else (Path(file), part)


def read_file(path: Path, part: str | None = None) -> FileContent:
    """Read one weight file.

    Args:
        path: a `.safetensors`, `.pth`, `.pt`, `.bin`, `.npz` or `.onnx` file.
        part: the network that is meant, where a pickle holds several, such as "teacher".

    Raises:
        RequestError: the file is missing, damaged, of another kind, or holds more than weights.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{path} is not a weight file that can be read; allowed endings: {', '.join(SUFFIXES)}")
    if not os.access(path, os.R_OK):
        raise RequestError(f"{path} may not be read by this user; change its permissions")
    if part is not None and path.suffix not in PICKLE_SUFFIXES:
        raise RequestError(f"{path} holds one network; leave out :{part}")
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        tensors, notes = strip_prefixes(tensors)
        return FileContent(tensors, metadata, notes)
    if path.suffix == ".npz":
        return FileContent(read_npz(path))
    if path.suffix == ".onnx":
        tensors, wrapper = without_wrapper(read_onnx(path))
        return FileContent(tensors, notes=(f"removed {wrapper!r} from every name",) if wrapper else ())
    if is_torchscript(path):
        tensors, notes = unwrap(read_torchscript(path), str(path), part)
        return FileContent(tensors, notes=("read a TorchScript archive without running its code", *notes))
    tensors, notes = unwrap(_read_pickle(path), str(path), part)
    return FileContent(tensors, notes=notes)


def check_safetensors_header(path: Path) -> None:
    """Refuse a header that is too large, cut off, not JSON, or names a tensor twice.

    The safetensors library keeps the last of two equal names without a word, so names are checked here.

    Raises:
        RequestError: as above.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER:
            raise RequestError(f"{path} is not a safetensors file, or its start is damaged: header of {length} bytes")
        if length > size - 8:
            raise RequestError(
                f"{path} is cut off: its header needs {length + 8} bytes, the file has {size}; copy it again"
            )
        header = file.read(length)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise RequestError(f"{path} names {', '.join(twice[:3])} more than once; which one counts can't be told")
        return dict(pairs)

    try:
        json.loads(header, object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path} is not a safetensors file, or its header is damaged: {error}") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a safetensors file into memory.

    Returns:
        Its tensors (views of the file, read when used) and its metadata.

    Raises:
        RequestError: the file is damaged.
    """
    check_safetensors_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged or cut off ({error}); copy or download it again") from error


def read_shards(index: Path) -> FileContent:
    """Read the files that a `*.index.json` lists, as one.

    Args:
        index: the index; its `weight_map` says which file beside it holds which tensor.

    Raises:
        RequestError: the index is damaged, or the files don't hold exactly what it lists.
    """
    wanted = read_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise RequestError(f"{index} has no 'weight_map', so it does not say which file holds which tensor")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(wanted.values())):
        if Path(name).name != name:
            raise RequestError(f"{index} points outside of its folder: {name!r}")
        part = read_file(index.parent / name).tensors
        if twice := sorted(tensors.keys() & part.keys()):
            raise RequestError(f"{index.parent} holds {twice[0]} in more than one file; which one counts can't be told")
        tensors |= part
    if difference := sorted(tensors.keys() ^ wanted.keys()):
        raise RequestError(f"{index} and its files disagree on {len(difference)} tensors: {', '.join(difference[:5])}")
    return FileContent(tensors, notes=(f"read {len(set(wanted.values()))} files listed in {index.name}",))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RequestError: the file is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _read_pickle(path: Path) -> Any:
    """Load a pickle through the restricted unpickler; map it where it is a zip archive."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        # A Namespace is a bag of command-line arguments and runs nothing; most training scripts save theirs.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise RequestError(
            f"{path} holds more than weights, or is not a torch file, and was not loaded: code in it could run. "
            f"{first.strip()[:200]} If you trust it, save its state_dict as .safetensors where it was made."
        ) from error
    except Exception as error:  # arbitrary bytes trip the unpickler in as many ways; all mean the same to the user
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RequestError(
            f"{path} is not a torch weight file, or is cut off ({text}); copy or download it again"
        ) from error


def unwrap(value: object, where: str, part: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the state dict in what a training script saved, and strip wrapper prefixes.

    Args:
        value: what the file held.
        where: the source in words.
        part: the key that is meant, where there are several networks.

    Returns:
        Name to tensor, and notes on every choice made.

    Raises:
        RequestError: there is no state dict in it, or there are two and nothing says which one is meant.
    """
    notes: list[str] = []
    if part is not None:
        if not isinstance(value, Mapping) or not isinstance(value.get(part), Mapping):
            raise RequestError(f"{where} has no part {part!r}{_keys_of(value)}")
        notes.append(f"took {part!r} out of the file, as asked")
        value = value[part]
    while isinstance(value, Mapping) and not _is_state_dict(value):
        found = [key for key in _candidates(value, where) if isinstance(value.get(key), Mapping) and value[key]]
        if not found:
            break
        others = sorted(str(key) for key in value if key != found[0])
        rest = f"; set aside: {', '.join(others[:8])}" if others else ""
        notes.append(f"took {found[0]!r} out of the file{rest}")
        value = value[found[0]]
    if not isinstance(value, Mapping) or not _is_state_dict(value):
        kind = (
            f"a mapping with the keys {sorted(map(str, value))[:8]}"
            if isinstance(value, Mapping)
            else type(value).__name__
        )
        raise RequestError(
            f"{where} holds no state dict (names to tensors) but {kind}; looked for {', '.join(WRAPPERS)} as well"
        )
    tensors, more = strip_prefixes(value)
    return tensors, (*notes, *more)


def _candidates(value: Mapping[Any, Any], where: str) -> tuple[str, ...]:
    """Return the keys that may hold the network, the best first; ask where two have equal rights."""
    for first, second in PAIRS:
        if {first, second} <= value.keys():
            raise RequestError(
                f"{where} holds two networks, {first!r} and {second!r}: say which one, as FILE:{first} (which is "
                f"evaluated) or FILE:{second}; of a mapping, pass that part"
            )
    return (*WRAPPERS, *(key for pair in PAIRS for key in pair))


def _keys_of(value: object) -> str:
    return f"; its keys are {', '.join(sorted(map(str, value))[:8])}" if isinstance(value, Mapping) else ""


def strip_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Remove the prefixes that DistributedDataParallel and torch.compile put before every name.

    Returns:
        The renamed tensors, and a note where something was removed.
    """
    removed = ""
    while tensors and (prefix := next((p for p in PREFIXES if all(n.startswith(removed + p) for n in tensors)), None)):
        removed += prefix
    notes = (f"removed the prefix {removed!r} from every name",) if removed else ()
    return {name.removeprefix(removed): tensor for name, tensor in tensors.items()}, notes


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
