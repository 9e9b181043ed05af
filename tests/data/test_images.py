"""Decoding: orientation, colour, and files that are not what they claim."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from data_helpers import encode, photo
from PIL import Image

from vit_finetune.common.errors import RequestError
from vit_finetune.data.images import check_header, decode_image

# What a viewer shows for the stored pixels [[a b c], [d e f]] (EXIF 2.32, orientation).
ORIENTATIONS = {
    1: ["abc", "def"],
    2: ["cba", "fed"],
    3: ["fed", "cba"],
    4: ["def", "abc"],
    5: ["ad", "be", "cf"],
    6: ["da", "eb", "fc"],
    7: ["fc", "eb", "da"],
    8: ["cf", "be", "ad"],
}


def letters(image: Image.Image) -> list[str]:
    """Return gray values 0, 40, 80, ... as letters a, b, c, ..."""
    return ["".join(chr(ord("a") + int(value) // 40) for value in row) for row in np.asarray(image)[..., 0]]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_decode_image__applies_orientation(orientation: int, kind: str) -> None:
    """All eight EXIF orientations come out upright, in every format that carries them."""
    scale = 16 if kind == "JPEG" else 1  # whole JPEG blocks of one value survive nearly exactly
    stored = Image.fromarray(
        np.kron(np.array([[5, 45, 85], [125, 165, 205]]), np.ones((scale, scale))).astype(np.uint8)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encode(stored.convert("RGB"), kind, exif=exif, **options)
    decoded = decode_image(data)
    middle = decoded.resize((decoded.width // scale, decoded.height // scale), Image.Resampling.NEAREST)
    assert letters(middle) == ORIENTATIONS[orientation]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_decode_image__ignores_unknown_orientation(orientation: int) -> None:
    """A value outside 1..8 means nothing and changes nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(0)
    assert np.array_equal(np.asarray(decode_image(encode(image, exif=exif))), np.asarray(image))


def test_decode_image__divides_16_bit_by_257() -> None:
    """16-bit gray: 0 -> 0, 65535 -> 255, 257 * v -> v, and the nearest in between."""
    values = np.array([[0, 128, 129, 257 * 100, 257 * 100 + 128, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 100, 100, 255]
    assert (decoded == decoded[..., :1]).all()


def png_of_16_bits(values: np.ndarray) -> bytes:
    """Return a PNG file of colours of 16 bits [H, W, 3], which Pillow cannot write (PNG specification, section 5)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_image__colour_of_16_bits_is_off_by_one_level_at_most(kind: str) -> None:
    """16-bit colour arrives as its high byte, which is never more than one level of 255 from the rounded value."""
    values = np.random.default_rng(0).integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    file = io.BytesIO(png_of_16_bits(values))
    if kind == "TIFF":
        tifffile.imwrite(file := io.BytesIO(), values, photometric="rgb")
    decoded = np.asarray(decode_image(file.getvalue())).astype(int)
    assert np.array_equal(decoded, values >> 8)
    assert np.abs(decoded - np.rint(values / 257)).max() == 1


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 255, (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 100, 200, 128), (127, 177, 227)),  # 255 - (255 - v) * 128 / 255
        ("LA", (0, 255), (0, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (0, 128), (127, 127, 127)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("I", 257 * 9, (9, 9, 9)),
    ],
)
def test_decode_image__colours_become_rgb(mode: str, pixel: object, expected: tuple[int, int, int]) -> None:
    """Every mode becomes the RGB written out here; alpha lies on white."""
    image = Image.new(mode, (3, 2), pixel)
    data = encode(image, "TIFF" if mode in ("CMYK", "I") else "PNG")
    for source in (image, data):
        decoded = decode_image(source)
        assert (decoded.mode, decoded.size) == ("RGB", (3, 2))
        assert np.asarray(decoded).reshape(-1, 3).tolist() == [list(expected)] * 6


def test_decode_image__palette_with_and_without_transparency() -> None:
    """Palette colours are looked up; a transparent palette entry becomes white."""
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putdata([0, 1])
    assert np.asarray(decode_image(encode(image))).tolist() == [[[200, 10, 10], [10, 200, 10]]]
    transparent = encode(image, transparency=0)
    assert np.asarray(decode_image(transparent)).tolist() == [[[255, 255, 255], [10, 200, 10]]]


def test_decode_image__takes_the_first_frame(tmp_path: Path) -> None:
    """Of an animation the first frame counts."""
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_decode_image__leaves_its_argument_alone() -> None:
    """An opened picture is not changed and not returned itself."""
    image = photo(1)
    decoded = decode_image(image)
    decoded.paste("red", (0, 0, 5, 5))
    assert np.array_equal(np.asarray(image), np.asarray(photo(1)))


@pytest.mark.parametrize("case", ["missing", "empty", "text", "truncated", "bomb", "float", "beyond 16 bits"])
def test_decode_image__bad_file_is_one_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is one line that names it and says why."""
    path = tmp_path / "bad.jpg"
    reasons = {"missing": "no such file", "empty": "not a picture", "text": "not a picture", "truncated": "truncated"}
    reasons |= {"bomb": "exceeds limit", "float": "no agreed range", "beyond 16 bits": "beyond 16 bits"}
    if case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_text("hello, I am no picture")
    elif case == "truncated":
        path.write_bytes(encode(photo(0, 64, 64), "JPEG")[:-200])
    elif case == "bomb":
        path.write_bytes(encode(photo(0, 64, 64), "JPEG"))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    elif case == "float":
        path.write_bytes(encode(Image.new("F", (2, 2), 0.5), "TIFF"))
    elif case == "beyond 16 bits":
        path.write_bytes(encode(Image.new("I", (2, 2), 70000), "TIFF"))
    with pytest.raises(RequestError, match=reasons[case]) as caught:
        decode_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_header__sees_what_is_no_picture() -> None:
    """A header check passes a truncated file, for it is cheap, and refuses what is no picture."""
    check_header(encode(photo(0), "JPEG")[:-10], name="a.jpg")
    with pytest.raises(RequestError, match=r"cannot read a\.jpg: it is not a picture"):
        check_header(b"not a picture", name="a.jpg")
