"""Zip archives from strangers: arrays and TorchScript are read without unpickling or running, and within bounds."""

from __future__ import annotations

import io
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.weights import read_source
from vit_finetune.weights.npz_reader import read_npz
from vit_finetune.weights.torchscript_reader import is_torchscript, read_torchscript


class Inner(nn.Module):
    """A layer with a parameter that it shares, a buffer, lists and a number, as traced models hold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.shared = self.linear.weight
        self.register_buffer("size", torch.tensor(224))
        self.sizes = [1, 2]
        self.scale = 0.5

    def forward(self, x):
        return self.linear(x) * self.scale


@pytest.fixture
def archive(tmp_path):
    """Return a TorchScript archive and its state dict."""
    module = torch.jit.script(nn.Sequential(Inner(), Inner()).half())
    path = tmp_path / "model.pt"
    torch.jit.save(module, path)
    return path, module.state_dict()


def rewritten(path, change):
    """Write an archive anew with each member's bytes changed by a function."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, change(name, data))


def test_read_torchscript__equals_its_state_dict(archive):
    """Names, values and types are those of `torch.jit.load(...).state_dict()`."""
    path, expected = archive
    found = read_torchscript(path)
    assert is_torchscript(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())


def test_read_torchscript__code_is_not_even_read(archive):
    """An archive whose program is nonsense gives its tensors: the program is never looked at."""
    path, expected = archive
    rewritten(path, lambda name, data: b"import os; os.abort()" if "/code/" in name else data)
    assert read_torchscript(path).keys() == expected.keys()
    with pytest.raises(RuntimeError):
        torch.jit.load(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cposix\nsystem\n"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n"),
        (b"ctorch\nHalfStorage\n", b"ctorch\nload\n"),
    ],
)
def test_read_torchscript__other_names_are_refused(archive, old, new):
    """Whatever a tree names beside modules and tensors is an error before it is imported."""
    path, _ = archive
    rewritten(path, lambda name, data: data.replace(old, new) if name.endswith("/data.pkl") else data)
    with pytest.raises(RequestError, match="neither module nor tensor"):
        read_source(path)


def test_read_torchscript__mutations_give_errors_or_tensors(archive):
    """Bytes changed at random never give anything but an error of ours or tensors within the file's size."""
    path, _ = archive
    original, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            found = read_source(path).tensors
        except RequestError:
            continue
        assert sum(value.numel() for value in found.values()) < len(original)


def test_read_npz__types(tmp_path):
    """Every type of number comes through, in either byte order and either order of axes; bfloat16 as torch's."""
    half = torch.randn(3, 2).bfloat16()
    arrays = {
        "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "scalar": np.float16(3),
        "empty": np.zeros((0, 3), np.float32),
        "half": half.view(torch.int16).numpy().view("V2"),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for file in ("a.npz", "b.npz"):
        found = read_npz(tmp_path / file)
        assert torch.equal(found.pop("half"), half)
        for name, value in found.items():
            np.testing.assert_array_equal(value.numpy(), arrays[name].astype(arrays[name].dtype.newbyteorder("=")))


def npy(header, data=b""):
    """Return the bytes of an `.npy` file with any header."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(FLOATS % "(1000000000000,)"), "don't fill"),
        (npy(FLOATS % "(-1,)"), "can't be true|don't fill"),
        (npy(FLOATS % "(2,)", bytes(4)), "don't fill"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cposix\nsystem\n"), "Python objects"),
        (npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", bytes(16)), "which are no weights"),
        (npy("__import__('os').abort()"), "its header is damaged"),
        (b"nonsense", "no array of numpy's"),
        (b"", "no array of numpy's"),
    ],
)
def test_read_npz__hostile_arrays(tmp_path, data, message):
    """A header that lies about size, type or itself is one error, and nothing is unpickled or allocated for it."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("w.npy", data)
    with pytest.raises(RequestError, match=message):
        read_source(tmp_path / "a.npz")


def test_read_npz__bomb(tmp_path):
    """A member that unpacks to a thousand times the file is refused by what it says of itself."""
    content = io.BytesIO()
    np.save(content, np.zeros(60_000_000, np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w.npy", content.getvalue())
    with pytest.raises(RequestError, match="as no weights do"):
        read_npz(tmp_path / "a.npz")


def test_read_npz__foreign_and_double_members(tmp_path):
    """A member that is no array, or two of one name, can't be taken for weights."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("readme.txt", b"hello")
    with pytest.raises(RequestError, match="readme.txt, which is no array"):
        read_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("w.npy", npy(FLOATS % "()", bytes(4)))
        file.writestr("w.npy", npy(FLOATS % "()", bytes(4)))
    with pytest.raises(RequestError, match="more than once"):
        read_npz(tmp_path / "b.npz")


def test_read_npz__mutations_give_errors_or_arrays(tmp_path):
    """Bytes changed at random never give anything but an error of ours or arrays within the file's size."""
    path, chance = tmp_path / "a.npz", random.Random(1)
    np.savez(path, **{f"layer_{i}/kernel": np.ones((4, 5), np.float32) for i in range(3)})
    original = path.read_bytes()
    for _ in range(300):
        data = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        try:
            found = read_source(path).tensors
        except RequestError:
            continue
        assert sum(value.numel() for value in found.values()) < len(original)


def pickled(path, tree):
    """Write an archive that holds nothing but a tree of modules."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", tree)
        file.writestr("m/constants.pkl", b"\x80\x02).")


def test_read_torchscript__endless_names(tmp_path):
    """Modules that share modules, a hundred deep, would have 2**100 names; they are refused at once."""
    module = b"c__torch__\nM\n)\x81"
    tree = b"\x80\x02" + module + b"}X\x01\x00\x00\x00nK\x01sb"
    for level in range(100):
        tree += b"q" + bytes([level]) + b"0" + module + b"}(" + b"X\x01\x00\x00\x00ah" + bytes([level])
        tree += b"X\x01\x00\x00\x00bh" + bytes([level]) + b"ub"
    pickled(tmp_path / "a.pt", tree + b".")
    with pytest.raises(RequestError, match="no tree of modules"):
        read_source(tmp_path / "a.pt")


@pytest.mark.parametrize("target", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n)R"])
def test_read_torchscript__only_modules_are_given_attributes(tmp_path, target):
    """A tree can't reach into the reader: nothing but a module takes attributes."""
    pickled(tmp_path / "a.pt", b"\x80\x02" + target + b"}X\x01\x00\x00\x00nK\x01sb.")
    with pytest.raises(RequestError, match="no module was given attributes"):
        read_source(tmp_path / "a.pt")
