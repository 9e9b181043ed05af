"""Pictures of many channels: read as tifffile reads them, in eight bits, from a file to a prediction."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

from vit_finetune import Predictor, finetune
from vit_finetune.common.errors import RequestError
from vit_finetune.data.images import check_header, decode_image, decode_picture


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 12])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_decode_picture__every_channel(channels: int, dtype: type, layout: str, byteorder: Any) -> None:
    """All channels come out in their order, whichever way they are laid; 16 bits are divided by 257."""
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (channels, 6, 9), dtype=dtype)
    stored = values if layout == "separate" else np.ascontiguousarray(np.moveaxis(values, 0, -1))
    data = tiff(stored, planarconfig=layout, byteorder=byteorder)
    picture = decode_picture(data)
    wanted = np.rint(values / 257) if dtype is np.uint16 else values
    assert isinstance(picture, torch.Tensor)
    assert picture.dtype == torch.uint8
    assert np.array_equal(picture.numpy(), wanted)
    header = check_header(data, name="x.tif")
    assert (header.width, header.height, header.mode) == (9, 6, f"{channels}x{8 * dtype().itemsize}")
    with pytest.raises(RequestError):  # nobody gets the first channel for the whole picture
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_decode_picture__colours_stay_pillows(kind: str) -> None:
    """What Pillow opens is decoded by it, to RGB, whatever the format."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (250, 10, 20)).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    picture = decode_picture(file.getvalue())
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.getpixel((2, 2))) == ("RGB", (250, 10, 20))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((6, 9, 5), dtype=np.float32), "float32, which has no agreed range"),
        (np.zeros((3, 6, 9, 5), dtype=np.uint8), r"an array \(3, 6, 9, 5\)"),
    ],
)
def test_decode_picture__other_tiffs_are_one_line(values: np.ndarray, message: str, tmp_path: Path) -> None:
    """Floats and stacks have no agreed reading; a damaged or half file neither; each is told by its name."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, planarconfig="contig"))
    with pytest.raises(RequestError, match=rf"cannot read .*a\.tif: .*{message}"):
        decode_picture(path)
    path.write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(RequestError, match=r"cannot read .*a\.tif") as caught:
        decode_picture(path)
    assert "\n" not in str(caught.value)


def test_decode_picture__without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is not installed, the line says what to install."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(RequestError, match="pip install tifffile"):
        decode_picture(tiff(np.zeros((6, 9, 5), dtype=np.uint8)[..., :5], planarconfig="contig"), name="a.tif")


def test_finetune__five_channels(tmp_path: Path) -> None:
    """Pictures of five channels train a model of five, which then predicts on the files; three channels are refused."""
    generator = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "pics" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = generator.integers(0, 20000, (24, 20, 5), dtype=np.uint16)
        values[..., 3 + number % 2] += 40000  # the classes differ where no colour picture has channels
        (folder / f"{number}.tif").write_bytes(tiff(values, planarconfig="contig"))
    config: dict[str, Any] = {
        "model": {
            "pretrained": None,
            "name": "vit_tiny_patch16_224",
            "img_size": 16,
            "in_chans": 5,
            "overrides": {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
        },
        "data": {"root": str(tmp_path / "pics"), "val_fraction": 0.34},
        "train": {"steps": 30, "global_batch_size": 8, "mixed_precision": "no"},
        "optimizer": {"lr": 0.01},
        "run": {"dir": str(tmp_path / "run"), "device": "cpu", "num_threads": 1},
    }
    done = finetune(config)
    assert done.metrics["accuracy"] == 1.0
    assert set(pq.read_table(tmp_path / "run" / "manifest.parquet")["mode"].to_pylist()) == {"5x16"}
    assert Predictor(tmp_path / "run")(tmp_path / "pics" / "b").labels == ("b",) * 6
    config["evaluation"] = {"corruptions": True}
    with pytest.raises(RequestError, match="corruptions are for pictures of colours, and the network takes 5"):
        finetune({**config, "run": {**config["run"], "dir": str(tmp_path / "corrupted")}})
    del config["evaluation"]
    config["model"]["in_chans"] = 3
    config["run"]["dir"] = str(tmp_path / "other")
    with pytest.raises(
        RequestError, match=r"\.tif: the picture has 5 channels and the model takes 3; set model.in_chans"
    ):
        finetune(config)
