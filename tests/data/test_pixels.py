"""Steps on bytes: equal to torchvision's where they promise it, close to Pillow's where they say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_helpers import photo
from torchvision.transforms import v2

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.pixels import CropOfBytes, FlipOfBytes, Normalise, ToImage, ToTensor, resized
from vit_finetune.data.transforms import apply_seeded, build_eval_crop, build_eval_rest, build_eval_transform
from vit_finetune.data.transforms import build_train_transform as train_transform

SPEC = PreprocessSpec(input_size=(3, 16, 16))


def test_normalise__is_torchvisions_for_every_byte() -> None:
    """All 256 values in every channel, as one picture or a batch, to the bit."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    oracle = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
    ours = Normalise(mean, std)
    assert torch.equal(ours(pixels), oracle(pixels))
    assert torch.equal(ours(torch.stack([pixels, pixels.flip(0)]))[1], oracle(pixels.flip(0)))
    assert pixels.dtype == torch.uint8


def test_crop_of_bytes__draws_and_resizes_as_torchvision() -> None:
    """The box of each seed is torchvision's, and so are the pixels of its own resize of bytes."""
    options = {"scale": (0.08, 1.0), "ratio": (0.75, 4 / 3), "interpolation": v2.InterpolationMode.BICUBIC}
    image = ToTensor()(photo(3, 61, 47))
    ours, theirs = CropOfBytes((16, 16), **options), v2.RandomResizedCrop((16, 16), **options)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(seed)
        assert torch.equal(ours(image), expected)


@pytest.mark.parametrize(("dim", "theirs"), [(-1, v2.RandomHorizontalFlip), (-2, v2.RandomVerticalFlip)])
def test_flip_of_bytes__draws_as_torchvision(dim: int, theirs: type[torch.nn.Module]) -> None:
    """With each seed what torchvision mirrors is mirrored, and nothing else."""
    image, mirrored = ToTensor()(photo(3, 6, 5)), 0
    for seed in range(20):
        torch.manual_seed(seed)
        expected = theirs(0.3)(image)
        torch.manual_seed(seed)
        assert torch.equal(FlipOfBytes(0.3, dim)(image), expected)
        mirrored += not torch.equal(expected, image)
    assert 0 < mirrored < 20


def test_resized__is_pillow_up_to_rounding() -> None:
    """Reducing a photograph with torch's kernel differs from Pillow by a rounding step here and there."""
    image = photo(5, 200, 150)
    quick = resized(ToTensor()(image), (40, 50), "bicubic").permute(1, 2, 0).numpy().astype(int)
    slow = np.asarray(image.resize((50, 40), 3)).astype(int)
    assert np.abs(quick - slow).max() <= 2
    assert np.abs(quick - slow).mean() < 0.2


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_between_forms__nothing_is_lost(mode: str) -> None:
    """Picture -> tensor and array -> picture give back the same bytes, in colour and in gray."""
    image = photo(2).convert(mode)
    array = ToTensor()(image).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(ToImage()(array)), np.asarray(image))


@pytest.mark.parametrize("resizer", ["pil", "torch"])
def test_train_transform__as_bytes_is_normalised_later_to_the_same_numbers(resizer: str) -> None:
    """Normalising on the device gives what the worker would have given, to the bit; arrays count as pictures."""
    early = train_transform(SPEC, resizer=resizer)
    late = train_transform(SPEC, resizer=resizer, as_bytes=True)
    image = photo(4, 61, 47)
    for seed in range(4):
        pixels = apply_seeded(late, image, seed)
        assert pixels.dtype == torch.uint8
        expected = apply_seeded(early, image, seed)
        assert torch.equal(Normalise(SPEC.mean, SPEC.std)(pixels), expected)
        assert torch.equal(apply_seeded(early, np.array(image), seed), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_eval_transform__is_its_two_halves(channels: int, crop_mode: str) -> None:
    """Crop, keep as an array, finish: the numbers of the whole transform, to the bit."""
    stats = {"mean": (0.4,) * channels, "std": (0.2,) * channels}
    spec = PreprocessSpec(input_size=(channels, 16, 16), crop_mode=crop_mode, **stats)  # type: ignore[arg-type]
    image = photo(6, 61, 47)
    kept = np.atleast_3d(np.array(build_eval_crop(spec)(image)))
    assert kept.shape == (16, 16, channels)
    whole = build_eval_transform(spec)(image)
    assert torch.equal(build_eval_rest(spec)(kept), whole)
    assert torch.equal(Normalise(spec.mean, spec.std)(build_eval_rest(spec, as_bytes=True)(kept)), whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resizer": "cv2"}, "resizer is 'cv2'; it is one of pil, torch"),
        ({"as_bytes": True, "random_erasing": 0.1}, "random_erasing"),
    ],
)
def test_train_transform__refuses(options: dict[str, object], words: str) -> None:
    """Unknown resizers and bytes with holes of the mean colour are told in a line."""
    with pytest.raises(RequestError, match=words):
        train_transform(SPEC, **options)  # type: ignore[arg-type]


def test_train_transform__torch_does_not_know_lanczos() -> None:
    """A filter that torch lacks is refused with the ones that it has."""
    spec = PreprocessSpec(input_size=(3, 16, 16), interpolation="lanczos")
    with pytest.raises(RequestError, match="does not know lanczos; it knows bicubic, bilinear, nearest"):
        train_transform(spec, resizer="torch")
