"""Corruptions: stronger is further away, the same picture is always spoiled the same way, and sizes stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import picture_set
from PIL import Image
from scipy.ndimage import gaussian_filter

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.corruptions import STRENGTHS, Corruption, corruption_lines, over_corruptions
from vit_finetune.data.loader import eval_batches
from vit_finetune.data.transforms import apply_seeded, build_eval_transform

NAMES = list(STRENGTHS)


def textured(seed: int, width: int, height: int) -> Image.Image:
    """Return a picture with fine structure, which a blur takes away."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def spec_of(channels: int = 3, side: int = 56) -> PreprocessSpec:
    half = (0.5,) * channels
    return PreprocessSpec(input_size=(channels, side, side), mean=half, std=half, crop_pct=1.0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_corruption__distance_grows_with_severity(name: str, channels: int) -> None:
    """For ten pictures, in colour and in gray, the mean distance from the clean tensor rises with the severity."""
    images = [textured(number, 90, 70) for number in range(10)]
    clean = build_eval_transform(spec_of(channels))
    distances = []
    for severity in STRENGTHS[name]:
        spoil = build_eval_transform(spec_of(channels), corruption=Corruption(name, severity))
        parts = [(apply_seeded(spoil, image, 7) - clean(image)).abs().mean().item() for image in images]
        distances.append(float(np.mean(parts)))
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", NAMES)
def test_corruption__is_the_same_at_any_number_of_workers(name: str, tmp_path: Path) -> None:
    """With no and two workers, and as two ranks, every picture has the same pixels; another seed changes noise only."""
    images = picture_set(tmp_path, 7)
    corruption = Corruption(name, 3)
    transform = build_eval_transform(spec_of(side=24), corruption=corruption)

    def pixels(seed: int = 1, **options: int) -> torch.Tensor:
        batches = eval_batches(images, transform, batch_size=3, seed=corruption.seed(seed), **options)
        return torch.cat([batch.images for batch in batches])

    alone = pixels()
    assert torch.equal(alone, pixels(num_workers=2))
    assert torch.equal(alone, torch.cat([pixels(rank=rank, world_size=2) for rank in (0, 1)]))
    assert torch.equal(alone, pixels(seed=2)) == (name != "noise")


def test_noise__has_the_strength_it_says_and_differs_by_picture() -> None:
    """On a flat gray picture the noise has the reference code's standard deviation, 0.08 of the range at severity 1."""
    gray = Image.new("RGB", (224, 224), (128, 128, 128))
    noisy = [np.asarray(apply_seeded(Corruption("noise", 1), gray, seed)) for seed in (0, 1)]  # type: ignore[arg-type]
    assert noisy[0].std() / 255 == pytest.approx(0.08, rel=0.02)
    assert not np.array_equal(*noisy)


def test_blur__is_a_gaussian_of_the_sigma_it_says() -> None:
    """Severity 3 is scipy's Gaussian of sigma 3 at 224 pixels and 0.7 at 32 (Pillow's is an approximation of one)."""
    for side, sigma in ((224, 3.0), (32, 0.7)):
        image = textured(3, side, side)
        pixels = np.asarray(image).astype(float)
        ours = np.asarray(Corruption("blur", 3)(image)).astype(float)
        theirs = gaussian_filter(pixels, sigma=(sigma, sigma, 0), mode="nearest")
        assert np.abs(ours - theirs).mean() < 0.1 * np.abs(pixels - theirs).mean()


@pytest.mark.parametrize(("side", "strength"), [(16, 0.4), (32, 0.4), (128, 0.7), (224, 1.0), (384, 1.0)])
def test_corruption__strength_lies_between_the_two_reference_codes(side: int, strength: float) -> None:
    """CIFAR-10-C's up to 32 pixels, ImageNet-C's from 224 on, half-way at 128: 0.4, 0.7 and 1 for the mildest blur."""
    assert Corruption("blur", 1).strength(side) == pytest.approx(strength)


@pytest.mark.parametrize(("name", "severity"), [("fog", 1), ("blur", 2)])
def test_corruption__unknown_is_refused(name: str, severity: int) -> None:
    """Another corruption or severity is refused with those there are."""
    with pytest.raises(RequestError, match="there are blur, noise, jpeg, each of 1, 3, 5"):
        Corruption(name, severity)


def test_table__is_every_corruption_and_its_mean() -> None:
    """Nine rows in order, and the mean that one works out: severities 1, 3, 5 give 0.9, 0.7, 0.5."""
    table = over_corruptions(lambda corruption: {"loss": 1.0, "accuracy": 1 - corruption.severity / 10})
    assert [(row["corruption"], row["severity"]) for row in table["rows"]] == [
        *(("blur", 1), ("blur", 3), ("blur", 5), ("noise", 1), ("noise", 3), ("noise", 5)),
        *(("jpeg", 1), ("jpeg", 3), ("jpeg", 5)),
    ]
    assert table["mean"] == pytest.approx({"loss": 1.0, "accuracy": 0.7})
    lines = corruption_lines(table, "accuracy")
    assert lines[0] == "blur   accuracy at severity 1: 0.9000  3: 0.7000  5: 0.5000"
    assert lines[-1] == "mean   accuracy 0.7000"
