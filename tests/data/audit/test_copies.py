"""Equal and nearly equal pictures: copies are found, and only copies."""

from __future__ import annotations

import io

import numpy as np
import pytest
from faulty_pictures import noise
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from vit_finetune.data.audit.copies import near_pairs, perceptual_hashes


def thumb(image: Image.Image) -> np.ndarray:
    """Return the thumbnail that facts keep."""
    return np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX))


def again(image: Image.Image, quality: int) -> Image.Image:
    """Return a picture after a stay in a JPEG file."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: again(image, 30),
        lambda image: image.resize((200, 150), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(1.15),
        lambda image: image.convert("L"),
    ],
    ids=["jpeg", "scaled", "brighter", "grey"],
)
def test_near_pairs__copies(change: object) -> None:
    """Copies that were saved anew, scaled, made brighter or grey are paired with their originals, each with its own."""
    originals = [noise(index, size=(400, 300)) for index in range(20)]
    thumbs = np.stack([thumb(image) for image in [*originals, *(change(image) for image in originals)]])
    assert near_pairs(thumbs).tolist() == [[index, index + 20] for index in range(20)]


def test_near_pairs__no_contrast_no_pair() -> None:
    """Pictures without contrast are not copies of each other."""
    flat = np.full((10, 16, 16), 200, dtype=np.uint8)
    flat[:, 0, 0] += np.arange(10, dtype=np.uint8)
    assert near_pairs(flat).shape == near_pairs(flat[:0]).shape == (0, 2)


def test_perceptual_hashes__low_frequencies() -> None:
    """The hash is scipy's DCT of the thumbnail: 7 x 9 signs of its 8 x 8 lowest frequencies against their median."""
    thumbs = np.random.default_rng(0).integers(0, 256, (30, 16, 16), dtype=np.uint8)
    spectrum = dctn(thumbs.astype(float), axes=(1, 2))[:, :8, :8].reshape(30, 64)[:, 1:]
    bits = spectrum > np.median(spectrum, axis=1, keepdims=True)
    expected = [sum(1 << place for place in np.flatnonzero(row).tolist()) for row in bits]
    assert perceptual_hashes(thumbs).tolist() == expected
