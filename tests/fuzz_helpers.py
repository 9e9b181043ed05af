"""Mutated weight files, and a process of its own that reads them: run as a script by `weights/test_fuzz.py`.

The process reads each file under an alarm, within an address space that is bounded above what its imports took, so that
a hang and a greedy allocation are errors, and a crash costs that process only.

Run: python tests/fuzz_helpers.py FOLDER COUNT; prints one JSON object.
"""

from __future__ import annotations

import io
import json
import math
import random
import resource
import signal
import struct
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save

from vit_finetune.common.errors import RequestError
from vit_finetune.weights import read_source

SECONDS_PER_FILE = 5
MEMORY = 600 * 2**20  # bytes of address space above that of the imports
BOMB = 200 * 2**20  # bytes; more than a reader may hold for a file of that size
NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def tensors() -> dict[str, torch.Tensor]:
    """Return what every file holds before it is mutated."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, 8), "blocks.0.attn.qkv.weight": (24, 8), "head.bias": (3,), "scale": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def graph() -> bytes:
    """Return an ONNX file with a named bias, a Gemm, an anonymous MatMul and a split position table."""
    values = {
        "layer.bias": np.ones(4, np.float32),
        "head.weight": np.ones((3, 4), np.float32),
        "onnx::MatMul_7": np.arange(16, dtype=np.float32).reshape(4, 4),
        "onnx::Concat_8": np.ones((1, 1, 4), np.float32),
        "onnx::Reshape_9": np.ones((1, 4, 4), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["a"], name="/layer/MatMul"),
        helper.make_node("Add", ["a", "layer.bias"], ["b"], name="/layer/Add"),
        helper.make_node("Reshape", ["onnx::Reshape_9", "shape"], ["c"], name="/embeddings/Reshape"),
        helper.make_node("Concat", ["onnx::Concat_8", "c"], ["d"], name="/embeddings/Concat", axis=1),
        helper.make_node("Gemm", ["b", "head.weight"], ["y"], name="/head/Gemm", transB=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
    return helper.make_model(helper.make_graph(nodes, "tiny", ends[:1], ends[1:], stored)).SerializeToString()


def arrays(*, packed: bool) -> bytes:
    """Return an `.npz` file."""
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **{key: value.numpy() for key, value in tensors().items()})
    return file.getvalue()


def pickled(content: object, *, zipped: bool) -> bytes:
    """Return a torch file."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def scripted() -> bytes:
    """Return a TorchScript archive."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    return file.getvalue()


def whole_files() -> dict[str, tuple[str, bytes]]:
    """Return kind to ending and bytes of a whole file."""
    return {
        "safetensors": (".safetensors", save(tensors(), metadata={"format": "pt"})),
        "npz": (".npz", arrays(packed=False)),
        "npz, packed": (".npz", arrays(packed=True)),
        "torch": (".pth", pickled({"state_dict": tensors(), "epoch": 3}, zipped=True)),
        "torch, old": (".pth", pickled({"state_dict": tensors(), "epoch": 3}, zipped=False)),
        "TorchScript": (".pt", scripted()),
        "ONNX": (".onnx", graph()),
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with a few of them changed, taken out, put in, doubled, or cut off; mostly near the ends.

    The ends are where headers and directories are, and what is damaged there is worse than a wrong weight.
    """
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        span = len(result) if chance.random() < 0.4 else min(400, len(result))
        place = chance.randrange(span) if chance.random() < 0.6 else len(result) - 1 - chance.randrange(span)
        width = chance.choice((1, 2, 4, 8))
        what = chance.randrange(6)
        if what == 0:
            result[place] ^= 1 << chance.randrange(8)
        elif what == 1:
            result[place : place + width] = (chance.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
        elif what == 2:
            del result[place : place + chance.choice((1, 2, 8, 64))]
        elif what == 3:
            result[place:place] = chance.randbytes(width)
        elif what == 4:
            result[place:place] = result[place : place + chance.choice((4, 32))]
        else:
            del result[place:]
        if not result:
            break
    return bytes(result)


def rewritten(data: bytes, suffix: str, chance: random.Random) -> bytes:
    """Mutate what lies inside a container and put it back in order, so that the inner reader gets to see it."""
    if suffix == ".safetensors":
        length = struct.unpack("<Q", data[:8])[0]
        header = mutated(data[8 : 8 + length], chance)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    if not data.startswith(b"PK"):
        return mutated(data, chance)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        chosen = chance.choice([name for name in names if name.endswith((".pkl", ".npy"))])
        for info in old.infolist():
            content = old.read(info)
            member = zipfile.ZipInfo(info.filename)
            packing = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) if chance.random() < 0.2 else 0
            new.writestr(member, mutated(content, chance) if info.filename == chosen else content, packing)
    return file.getvalue()


class TooLongError(BaseException):
    """A reader that hangs; no reader may catch it."""


def outcome(path: Path) -> str:
    """Read a file and say how it ended: "read", "refused", or what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FILE)
    try:
        for value in read_source(path).tensors.values():
            value.numel()
    except RequestError as error:
        return "refused" if "\n" not in str(error) else f"an error of several lines: {error}"
    except TooLongError:
        return f"still reading after {SECONDS_PER_FILE} s"
    except BaseException as error:  # whatever it is, it is what this looks for
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def fuzz(folder: Path, count: int) -> dict[str, dict[str, int]]:
    """Read `count` mutations of each kind of file, the first of which is the whole file.

    Returns:
        Kind to outcome to how often; what went wrong carries the mutation's number.
    """
    found = {}
    for kind, (suffix, data) in whole_files().items():
        path = folder / f"file{suffix}"
        counts: Counter[str] = Counter()
        for number in range(count):
            chance = random.Random(f"{kind} {number}")
            changed = data if not number else mutated(data, chance) if number % 2 else rewritten(data, suffix, chance)
            path.write_bytes(changed)
            result = outcome(path)
            counts[result if result in {"read", "refused"} else f"{number}: {result[:200]}"] += 1
        found[kind] = dict(counts)
    return found


def bomb(path: Path, data: bytes, member: str) -> None:
    """Write an archive anew with one member that is small, and unpacks to `BOMB` bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w", compresslevel=1) as new:
        for info in old.infolist():
            if not info.filename.endswith(member):
                new.writestr(info.filename, old.read(info))
                continue
            packed = zipfile.ZipInfo(info.filename)
            packed.compress_type = zipfile.ZIP_DEFLATED
            with new.open(packed, "w") as file:
                for _ in range(BOMB // 2**20):
                    file.write(bytes(2**20))


def with_shape(shape: list[int]) -> bytes:
    """Return a safetensors file of nothing but a header, which claims a tensor of that shape."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
    text = json.dumps({"x": entry}).encode()
    return struct.pack("<Q", len(text)) + text


def absurd(folder: Path) -> dict[str, str]:
    """Read files that claim, or unpack to, far more than they are.

    Returns:
        What it is to outcome.
    """
    whole = whole_files()
    bombs = {
        ("npz", "head.bias.npy"): "an array that unpacks to 200 MB",
        ("torch", "data.pkl"): "a pickle that unpacks to 200 MB",
        ("TorchScript", "data.pkl"): "a tree that unpacks to 200 MB",
        ("TorchScript", "data/0"): "a storage that unpacks to 200 MB",
    }
    found = {}
    for (kind, member), words in bombs.items():
        suffix, data = whole[kind]
        bomb(folder / f"bomb{suffix}", data, member)
        found[words] = outcome(folder / f"bomb{suffix}")
    headers = {
        "a header of exabytes": struct.pack("<Q", 2**60) + b"{}",
        "a header of nothing but brackets": struct.pack("<Q", 2**20) + b"[" * 2**20,
        "a tensor of terabytes": with_shape([2**40]),
        "a shape that overflows": with_shape([2**32, 2**33]),
    }
    for words, data in headers.items():
        (folder / "absurd.safetensors").write_bytes(data)
        found[words] = outcome(folder / "absurd.safetensors")
    claim = helper.make_tensor("layer.bias", TensorProto.FLOAT, [1], b"1234", raw=True)
    claim.dims[0] = 2**40
    model = helper.make_model(helper.make_graph([], "tiny", [], [], [claim]))
    (folder / "absurd.onnx").write_bytes(model.SerializeToString())
    found["an ONNX tensor of terabytes"] = outcome(folder / "absurd.onnx")
    return found


def address_space() -> int:
    """Return the bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def raise_too_long(*_: object) -> None:
    """Stop what runs."""
    raise TooLongError


def main() -> None:
    """Fuzz within limits and print what happened."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGALRM, raise_too_long)
    warnings.simplefilter("ignore")
    fuzz(folder, 1)  # imports whatever is imported on first use
    limit = address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"mutated": fuzz(folder, count), "absurd": absurd(folder)}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({**found, "grown_mb": grown / 1024}))


if __name__ == "__main__":
    main()
