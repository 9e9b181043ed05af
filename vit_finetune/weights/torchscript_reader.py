"""Reading the tensors of a TorchScript archive, as OpenAI released CLIP, without running the code in it.

Such an archive holds a program (`code/`), which `torch.jit.load` compiles, and a pickle of the module tree
(`data.pkl`), whose tensors lie in members of their own. Only the tree is read, by an unpickler that knows five things:
modules, which become plain dictionaries; tensors; their storages; and typed lists. Any other name in it is an error.

Sources: torch `csrc/jit/serialization/unpickler.cpp` and `torch/jit/_pickle.py`; Python's `pickle` on `find_class`.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import torch
from torch import Tensor

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.archives import member_bytes, opened

_TREE = "data.pkl"
_MAX_TREE = 50_000_000  # bytes; that of CLIP ViT-L is under 1 MB
_MAX_ATTRIBUTES = 1_000_000
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a zip archive with a TorchScript program in it."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with opened(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read parameters and buffers of a TorchScript module, under the names of its state dict.

    Args:
        path: an archive that `torch.jit.save` wrote.

    Raises:
        RequestError: it is damaged, or holds more than modules and tensors; its code is not run to find out.
    """
    with opened(path) as archive:
        tree = next((name for name in archive.namelist() if name.endswith(f"/{_TREE}")), None)
        if tree is None or archive.getinfo(tree).file_size > _MAX_TREE:
            raise RequestError(f"{path} is a TorchScript archive without a usable {_TREE}; copy or download it again")
        try:
            module = _Tree(archive, path, tree.removesuffix(_TREE)).load()
        except RequestError:
            raise
        except Exception as error:  # a tree of arbitrary bytes fails in as many ways as there are
            raise RequestError(
                f"{path} is a TorchScript archive whose modules can't be read without running its code ({error}). If "
                "you trust it, load it with torch.jit.load and save its state_dict() as .safetensors"
            ) from error
    tensors = _tensors_of(module, path)
    if not tensors:
        raise RequestError(f"{path} is a TorchScript archive without parameters")
    return tensors


class _Module(dict[str, Any]):
    """What stands in for every class of the archive: its attributes, and no behaviour."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, Mapping):
            raise RequestError("a module of the TorchScript archive has no attributes by name")
        self.update({str(name): value for name, value in state.items()})


def _build(tree: Any) -> None:
    """Give a module its attributes; nothing else in such a tree has any."""
    if type(tree.stack[-2]) is not _Module:
        raise RequestError("something that is no module was given attributes")
    tree.load_build()


class _Tree(pickle._Unpickler):  # the one in Python: the one in C takes any index for its memo, and memory for it
    """An unpickler that builds modules and tensors and nothing else."""

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _build}

    def __init__(self, archive: ZipFile, path: Path, folder: str) -> None:
        super().__init__(io.BytesIO(member_bytes(archive, f"{folder}{_TREE}", path).tobytes()))
        self._archive, self._path, self._folder = archive, path, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a class or function; nothing is ever imported."""
        if module.partition(".")[0] == "__torch__":
            return _Module
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): dict,
            **{("torch.jit._pickle", function): list for function in _LISTS},
            ("torch.jit._pickle", "restore_type_tag"): _untagged,
        }
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in known:
            raise RequestError(
                f"{self._path} holds {module}.{name}, which is neither module nor tensor; it was not loaded"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor, mapped from its member."""
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype):
            raise RequestError(f"{self._path} has a storage of no known type")
        name = f"{self._folder}data/{key}"
        if name not in self._storages:
            data = member_bytes(self._archive, name, self._path)
            self._storages[name] = torch.from_numpy(data).view(dtype)
        flat = self._storages[name]
        if flat.dtype != dtype or flat.numel() != count:
            raise RequestError(f"{self._path} is damaged: {name} holds {flat.numel()} values instead of {count}")
        return flat


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Tensor:
    """Return a view of a storage, within its bounds; what autograd would like to know is left out."""
    if math.prod(shape) > storage.numel():
        raise RequestError(f"a tensor of {list(shape)} values in a storage of {storage.numel()}")
    return storage.as_strided(tuple(shape), tuple(strides), offset)


def _untagged(value: object, _: object) -> object:
    return value


def _tensors_of(module: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a module and of all below it under their full names."""
    tensors: dict[str, Tensor] = {}
    waiting: deque[tuple[str, object]] = deque([("", module)])
    seen = 0  # modules may be shared, and then have several names; what is built to have endless ones is no network
    while waiting:
        prefix, module = waiting.popleft()
        if not isinstance(module, _Module) or (seen := seen + 1 + len(module)) > _MAX_ATTRIBUTES:
            raise RequestError(f"{path} is a TorchScript archive that holds no tree of modules")
        tensors |= {prefix + name: value for name, value in module.items() if isinstance(value, Tensor)}
        below = [(f"{prefix}{name}.", value) for name, value in module.items() if isinstance(value, _Module)]
        waiting.extendleft(reversed(below))  # in the order of a state dict
    return tensors
