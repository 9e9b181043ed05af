"""Reading files: nothing is run, nothing is guessed, every damaged file is one clear error."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weights_helpers import same, save_tiny, tiny

from vit_finetune.common.errors import RequestError
from vit_finetune.weights import from_pretrained, load_pretrained, read_source


class Payload:
    """An object whose unpickling would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_read_file__malicious_pickle_is_refused_and_not_run(tmp_path, zipped, wrapped):
    """Code in a checkpoint never runs, in either torch container, alone or beside honest weights."""
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {"state_dict": tiny().state_dict(), "extra": Payload(marker)} if wrapped else Payload(marker)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RequestError, match=r"evil\.pth holds more than weights.*\.safetensors"):
        read_source(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the payload is real: the unrestricted loader runs it
    assert marker.exists()


def test_read_file__plain_pickle_is_refused(tmp_path):
    """A file written by `pickle.dump` is refused without being run too."""
    marker, path = tmp_path / "marker", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(RequestError, match=r"evil\.bin"):
        read_source(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: s, None),
        (OrderedDict, None),
        (lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "took 'state_dict'.*args, epoch"),
        (lambda s: {"model": s, "optimizer": {"lr": 1}}, "took 'model'.*optimizer"),
        (lambda s: {"module." + k: v for k, v in s.items()}, "removed the prefix 'module.'"),
        (lambda s: {"_orig_mod." + k: v for k, v in s.items()}, "removed the prefix '_orig_mod.'"),
        (lambda s: {"model": {"module._orig_mod." + k: v for k, v in s.items()}}, "'module._orig_mod.'"),
        (lambda s: {"model_ema": s, "model": {k: v * 0 for k, v in s.items()}}, "took 'model_ema'.*set aside: model"),
        (lambda s: {"state_dict_ema": s, "state_dict": {k: v * 0 for k, v in s.items()}}, "took 'state_dict_ema'"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_read_file__wrappers_are_unwrapped_and_reported(tmp_path, wrap, note, zipped):
    """What training scripts write around a state dict is taken off, averaged weights first, and said."""
    model, path = tiny(), tmp_path / "w.pth"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    fresh = tiny(seed=1)
    report = load_pretrained(fresh, path, head="keep")
    assert same(fresh, model)
    if note is None:
        assert report.notes == ()
    else:
        assert re.search(note, " ".join(report.notes)), report.notes


def test_read_file__mapped_memory_leaves_the_file_alone(tmp_path):
    """Writing into a loaded model changes neither kind of file."""
    save_tiny(tmp_path / "a.safetensors")
    torch.save(tiny().state_dict(), tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        path = tmp_path / name
        before = path.read_bytes()
        model, _ = from_pretrained(path, name="vit_tiny_patch16_224", **(FULL if name == "a.pth" else {}))
        with torch.no_grad():
            model.pos_embed.add_(1)
        assert path.read_bytes() == before


FULL = {"img_size": (64, 64), "embed_dim": 32, "depth": 2, "num_heads": 2}


def truncated(path):
    """Cut a file in the middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_read_file__truncated(tmp_path):
    """A cut file of either kind says so."""
    save_tiny(tmp_path / "a.safetensors")
    torch.save(tiny().state_dict(), tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        truncated(tmp_path / name)
        with pytest.raises(RequestError, match=r"cut off.*again"):
            read_source(tmp_path / name)
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 5000) + b"{}")
    with pytest.raises(RequestError, match="its header needs 5008 bytes, the file has 10"):
        read_source(tmp_path / "b.safetensors")


def header_file(path, header: str, body: bytes = b""):
    """Write a safetensors file by hand."""
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)
    return path


def test_read_file__oversized_header(tmp_path):
    """A header that claims exabytes is refused before anything is allocated."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100)
    with pytest.raises(RequestError, match="header of 1152921504606846976 bytes"):
        read_source(path)


def test_read_file__duplicate_names(tmp_path):
    """A header that names a tensor twice is refused; the safetensors library keeps the last in silence."""
    entry = '"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    path = header_file(tmp_path / "a.safetensors", f"{{{entry},{entry}}}", bytes(4))
    with pytest.raises(RequestError, match="names x more than once"):
        read_source(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "not a safetensors file"),
        ("a.safetensors", b"\xff\xd8\xff\xe0" * 100, "not a safetensors file"),
        ("a.safetensors", struct.pack("<Q", 8) + b"not json", "header is damaged"),
        ("a.pth", b"", "not a torch weight file"),
        ("a.pth", b"hello world", "a.pth"),
        ("a.pt", b"\xff\xd8\xff\xe0" * 100, "a.pt"),
        ("a.bin", b"PK\x03\x04" + bytes(50), "a.bin"),
        ("a.jpg", b"\xff\xd8", "allowed endings: .safetensors, .pth, .pt, .bin, .npz, .onnx"),
    ],
)
def test_read_file__foreign_files(tmp_path, name, content, message):
    """Files of other kinds are each one clear error that names the file."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        read_source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_file__foreign_contents(tmp_path):
    """A zip without a pickle, a list, and a dict without tensors hold no weights, and each says so."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(RequestError, match=r"a\.pth is not a torch weight file"):
        read_source(tmp_path / "a.pth")
    for index, value in enumerate(([1, 2], {"epoch": 3}, {}, {"model": {}}, torch.zeros(3))):
        torch.save(value, tmp_path / f"{index}.pth")
        with pytest.raises(RequestError, match="holds no state dict"):
            read_source(tmp_path / f"{index}.pth")


def test_read_source__missing_file(tmp_path):
    """A path that is not there says what a source can be."""
    with pytest.raises(RequestError, match="there is no file or folder .*nothing.*hf-hub:owner/name"):
        read_source(tmp_path / "nothing.safetensors")


def test_load__wrong_dtype(tmp_path):
    """Integer weights are an error that names tensor and type; another float type is cast and reported."""
    model = tiny()
    state = model.state_dict()
    with pytest.raises(RequestError, match=r"1 not of a floating-point type: norm\.weight \(int64\)"):
        load_pretrained(tiny(), {**state, "norm.weight": state["norm.weight"].long()})
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "half.safetensors")
    fresh = tiny(seed=1)
    report = load_pretrained(fresh, tmp_path / "half.safetensors", head="keep")
    assert fresh.norm.weight.dtype == torch.float32
    assert f"cast {len(state)} tensors from float16 to float32" in report.notes
    built, _ = from_pretrained(tmp_path / "half.safetensors", name="vit_tiny_patch16_224", **FULL)
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    assert same(built, fresh)


def test_load__nan_is_warned(tmp_path):
    """NaN and infinity are named in the notes; values that merely overflow a sum are not."""
    model = tiny()
    with torch.no_grad():
        model.blocks[1].norm1.bias[3] = float("nan")
        model.norm.weight[0] = float("inf")
        model.cls_token.fill_(3e38)
    save_tiny(tmp_path / "a.safetensors", model)
    _, report = from_pretrained(tmp_path / "a.safetensors")
    assert [note for note in report.notes if "NaN" in note] == [
        "WARNING: NaN or infinite values in blocks.1.norm1.bias, norm.weight"
    ]


def test_read_shards(tmp_path):
    """A sharded folder reads as one; a duplicate, a missing and an escaping shard are errors."""
    model = tiny()
    state = list(model.state_dict().items())
    parts = {"model-00001-of-00002.safetensors": dict(state[:9]), "model-00002-of-00002.safetensors": dict(state[9:])}
    for name, part in parts.items():
        save_file(part, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, part in parts.items() for key in part}}))
    fresh = tiny(seed=1)
    report = load_pretrained(fresh, tmp_path, head="keep")
    assert same(fresh, model)
    assert "read 2 files listed in model.safetensors.index.json" in report.notes

    save_file(dict(state[8:]), tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(RequestError, match=f"holds {state[8][0]} in more than one file"):
        read_source(tmp_path)
    save_file(dict(state[10:]), tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(RequestError, match=f"disagree on 1 tensors: {state[9][0]}"):
        read_source(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(RequestError, match="there is no file .*00002-of-00002"):
        read_source(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(RequestError, match="points outside of its folder"):
        read_source(tmp_path)
    index.write_text("{")
    with pytest.raises(RequestError, match="not readable JSON"):
        read_source(tmp_path)


def test_read_source__npz_is_not_unpickled(tmp_path):
    """Arrays of numbers are read, arrays of Python objects are refused before anything is unpickled."""
    np.savez(tmp_path / "a.npz", x=np.arange(3.0))
    assert read_source(tmp_path / "a.npz").tensors["x"].tolist() == [0.0, 1.0, 2.0]
    np.savez(tmp_path / "b.npz", x=np.array([{}], dtype=object))
    with pytest.raises(RequestError, match="Python objects"):
        read_source(tmp_path / "b.npz")
