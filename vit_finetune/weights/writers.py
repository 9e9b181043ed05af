"""Writing planned tensors to disk one at a time, so that memory holds the largest of them and not the model.

A safetensors header comes first and says where everything will lie, which a plan knows beforehand. `.npz` is written
member by member. `.pth` needs all tensors at once: they are mapped from a file written just before. This module doesn't
know what the tensors mean.

Sources: the safetensors format; numpy's `lib.format`; `torch.save`; the shard index of huggingface_hub.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.common.files import write_json
from vit_finetune.common.sizes import parse_size
from vit_finetune.weights.lazy import Lazy
from vit_finetune.weights.network import refuse_not_finite

# In the library's own order, in which it lays tensors out: the largest types first, so that every tensor is aligned.
_SAFETENSORS_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    folder: Path,
    file: str,
    tensors: Mapping[str, Lazy],
    *,
    metadata: Mapping[str, str],
    max_shard_size: str | None,
    wrapper: str = "",
) -> dict[str, str]:
    """Compute and write tensors.

    Args:
        folder: an existing folder.
        file: the name of the weight file; its ending says the kind.
        tensors: name to tensor.
        metadata: for the header of safetensors files.
        max_shard_size: such as "5GB"; larger safetensors files become several with an index. None never splits.
        wrapper: the key under which pickles hold the weights; "" is none.

    Returns:
        The SHA-256 of each tensor's bytes.

    Raises:
        RequestError: a value is not finite, or a type that the kind of file can't hold.
    """
    if file.endswith(".npz"):
        return _write_npz(folder / file, tensors)
    if file.endswith((".pth", ".pt", ".bin")):
        return _write_pickle(folder / file, tensors, wrapper)
    shards = _shards(tensors, _bytes(max_shard_size))
    if len(shards) == 1:
        return write_safetensors(folder / file, tensors, metadata=metadata)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    stem, suffix = file.rsplit(".", 1)
    for index, names in enumerate(shards):
        shard = f"{stem}-{index + 1:05d}-of-{len(shards):05d}.{suffix}"
        digests |= write_safetensors(folder / shard, {name: tensors[name] for name in names}, metadata=metadata)
        weight_map |= dict.fromkeys(names, shard)
    total = sum(_size(value) for value in tensors.values())
    write_json(folder / f"{file}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return digests


def write_safetensors(path: Path, tensors: Mapping[str, Lazy], *, metadata: Mapping[str, str]) -> dict[str, str]:
    """Write one safetensors file; arguments, result and errors as for `write_tensors`."""
    for name, value in tensors.items():
        if value.meta.dtype not in _SAFETENSORS_NAMES:
            raise RequestError(f"{name} is of the type {value.meta.dtype}, which safetensors files don't hold here")
    ranks = list(_SAFETENSORS_NAMES)
    names = sorted(tensors, key=lambda name: (ranks.index(tensors[name].meta.dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in names:
        meta, size = tensors[name].meta, _size(tensors[name])
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[meta.dtype],
            "shape": list(meta.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digests = {}
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as beside:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            data = _raw(_value(name, tensors[name]))
            digest = beside.submit(hashlib.sha256, data)  # as long as writing, and neither holds the interpreter
            file.write(data)
            digests[name] = digest.result().hexdigest()
    return digests


def _write_npz(path: Path, tensors: Mapping[str, Lazy]) -> dict[str, str]:
    digests = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, lazy in tensors.items():
            value = _value(name, lazy)
            member = zipfile.ZipInfo(f"{name}.npy")  # a fixed date, so that equal weights are equal files
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, _array(value), allow_pickle=False)
            digests[name] = hashlib.sha256(_raw(value)).hexdigest()
    return digests


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as numpy's; bfloat16 as two bytes without a type, which is how JAX saves and knows it."""
    return value.view(torch.int16).numpy().view("V2") if value.dtype == torch.bfloat16 else value.numpy()


def _write_pickle(path: Path, tensors: Mapping[str, Lazy], wrapper: str) -> dict[str, str]:
    """Write torch's own kind of file out of mapped memory."""
    mapped = path.with_name(f".{path.name}.safetensors")
    digests = write_safetensors(mapped, tensors, metadata={})
    with mapped.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    state = {
        name: _mapped(mapped, length + 8 + header[name]["data_offsets"][0], lazy) for name, lazy in tensors.items()
    }
    torch.save({wrapper: state} if wrapper else state, path)
    del state
    mapped.unlink()
    return digests


def _mapped(path: Path, offset: int, lazy: Lazy) -> Tensor:
    """Return a tensor of its own storage whose memory is a part of a file."""
    size = _size(lazy)
    if not size:
        return torch.empty(lazy.shape, dtype=lazy.meta.dtype)
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(size,))
    return torch.from_numpy(data).view(lazy.meta.dtype).reshape(lazy.shape)


def _value(name: str, lazy: Lazy) -> Tensor:
    value = lazy.compute().detach().cpu().contiguous()
    assert tuple(value.shape) == lazy.shape, f"{name} was planned as {lazy.shape} and became {tuple(value.shape)}"
    refuse_not_finite(name, value)
    return value


def _raw(value: Tensor) -> memoryview:
    """Return a tensor's bytes without copying them."""
    data: Any = value.reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def _size(lazy: Lazy) -> int:
    return lazy.meta.numel() * lazy.meta.element_size()


def _bytes(size: str | None) -> int | None:
    return None if size is None else parse_size(size, "max_shard_size")


def _shards(tensors: Mapping[str, Lazy], limit: int | None) -> Sequence[list[str]]:
    """Fill one file after the other; a tensor larger than the limit gets a file of its own."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, value in tensors.items():
        if limit is not None and shards[-1] and used + _size(value) > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += _size(value)
    return shards
