"""The quick decoders: Pillow's pixels or none at all; at a reduced scale a bounded difference."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import encode, photo
from PIL import Image

from vit_finetune.data.decode import decode_jpeg, draft_jpeg, size_of
from vit_finetune.data.images import decode_image


def detailed(width: int, height: int) -> Image.Image:
    """Return a picture with edges, gradients and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    stripes = 60 * np.sign(np.sin(x / 9) * np.cos(y / 13))
    smooth = 128 + 50 * np.sin(x[..., None] / [37, 53, 71] + y[..., None] / 29)
    noise = rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(smooth + stripes[..., None] + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("options", [{"quality": 95, "subsampling": 0}, {"quality": 60}, {"progressive": True}])
@pytest.mark.parametrize("size", [(24, 20), (37, 61), (8, 8)])
def test_decode_jpeg__is_pillow_to_the_byte(size: tuple[int, int], options: dict[str, object]) -> None:
    """Odd sizes, every subsampling, baseline and progressive: the pixels are `decode_image`'s, and writable."""
    data = encode(detailed(*size), "JPEG", **options)
    pixels = decode_jpeg(data)
    assert pixels is not None, "simplejpeg is missing; the tests need it"
    np.testing.assert_array_equal(pixels, np.asarray(decode_image(data)))
    assert pixels.flags.writeable


def test_decode_jpeg__leaves_everything_else_to_pillow() -> None:
    """Gray, CMYK, turned, cut off, followed by other bytes, not JPEG: None, so that one place decides."""
    image = photo(1, 40, 30)
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = encode(image, "JPEG")
    others = [
        encode(image.convert("L"), "JPEG"),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image, "JPEG", exif=turned),
        plain[:-40],
        encode(image, "PNG"),
        b"",
        b"\xff\xd8\xff nothing \xff\xd9",
    ]
    assert [decode_jpeg(data) for data in others] == [None] * len(others)


def test_draft_jpeg__stays_close_to_the_full_picture() -> None:
    """Reduced while decoding, then to the working size: the mean difference from full decoding is below 2.5 of 255."""
    data = encode(detailed(1000, 800), "JPEG", quality=90)
    for least, scale in ((100, 4), (200, 2), (50, 8)):
        image = draft_jpeg(data, least)
        assert image is not None
        assert image.size == (1000 // scale, 800 // scale)
        size = (least * 1000 // 800, least)
        quick, full = (
            np.asarray(one.resize(size, Image.Resampling.BICUBIC), dtype=float) for one in (image, decode_image(data))
        )
        assert np.abs(quick - full).mean() < 2.5, least


def test_draft_jpeg__needs_twice_the_size() -> None:
    """A picture that would have less than twice the size asked for, or is no JPEG, is decoded in full."""
    data = encode(photo(1, 100, 80), "JPEG")
    assert draft_jpeg(data, 21) is None
    assert draft_jpeg(data, 20) is not None
    assert draft_jpeg(encode(photo(1, 100, 80), "PNG"), 10) is None


def test_size_of__reads_the_header() -> None:
    """Width and height, or zeros for what is no picture."""
    assert size_of(encode(photo(1, 40, 30), "PNG")) == (40, 30)
    assert size_of(b"nothing") == (0, 0)
