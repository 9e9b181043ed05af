"""Transforms: equal to timm's in evaluation, seeded in training."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_helpers import photo
from timm.data import create_transform

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.data.transforms import apply_seeded, build_eval_transform, build_train_transform

SPEC = PreprocessSpec(input_size=(3, 32, 32))


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 40)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_eval_transform__equals_timm(size: tuple[int, int], crop_pct: float, crop_mode: str) -> None:
    """Number for number timm's evaluation transform, larger and smaller pictures, tall and wide."""
    for interpolation in ("bicubic", "bilinear", "nearest", "lanczos"):
        spec = PreprocessSpec(
            input_size=(3, *size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
        )
        ours = build_eval_transform(spec)
        theirs = create_transform(
            spec.input_size,
            interpolation=interpolation,
            mean=spec.mean,
            std=spec.std,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        )
        for seed, shape in enumerate([(100, 80), (61, 97), (20, 30), (33, 32), (7, 211)]):
            image = photo(seed, *shape)
            torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


def test_eval_transform__gray() -> None:
    """A one-channel model gets gray pictures, in every crop mode."""
    for crop_mode in ("center", "squash", "border"):
        spec = PreprocessSpec(
            input_size=(1, 16, 24), mean=(0.5,), std=(0.25,), crop_mode=crop_mode, interpolation="bilinear"
        )
        image = photo(0, 30, 20)
        tensor = build_eval_transform(spec)(image)
        theirs = create_transform(
            spec.input_size, interpolation="bilinear", mean=(0.5,), std=(0.25,), crop_pct=0.875, crop_mode=crop_mode
        )
        assert tensor.shape == (1, 16, 24)
        torch.testing.assert_close(tensor, theirs(image.convert("L")), rtol=0, atol=1e-6)


def test_eval_transform__thin_picture_fits_a_border() -> None:
    """A picture that would shrink to no pixel at all keeps one."""
    spec = PreprocessSpec(input_size=(3, 16, 16), crop_mode="border")
    assert build_eval_transform(spec)(photo(0, 3000, 2)).shape == (3, 16, 16)


EVERYTHING = {"color_jitter": 0.4, "vflip": 0.5, "random_erasing": 0.5}


@pytest.mark.parametrize("auto_augment", [None, "randaugment", "trivialaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_train_transform__gives_the_models_input(auto_augment: str | None, channels: int) -> None:
    """Shape, dtype and plainness with everything switched on; the transform travels to other processes."""
    spec = PreprocessSpec(input_size=(channels, 24, 32), mean=(0.5,) * channels, std=(0.5,) * channels)
    transform = build_train_transform(spec, auto_augment=auto_augment, **EVERYTHING)  # type: ignore[arg-type]
    transform = pickle.loads(pickle.dumps(transform))
    for seed in range(10):
        tensor = apply_seeded(transform, photo(seed), seed)
        assert type(tensor) is torch.Tensor
        assert (tensor.shape, tensor.dtype) == ((channels, 24, 32), torch.float32)
        assert -1 <= tensor.min() <= tensor.max() <= 1


def test_apply_seeded__depends_on_picture_and_seed_alone() -> None:
    """Equal whatever was drawn before, from any generator; different for other seeds; the generator left as it was."""
    transform = build_train_transform(SPEC, auto_augment="randaugment", **EVERYTHING)  # type: ignore[arg-type]
    torch.manual_seed(1)
    first = apply_seeded(transform, photo(0), 5)
    torch.rand(7)
    random.seed(8)
    np.random.seed(9)
    assert torch.equal(apply_seeded(transform, photo(0), 5), first)
    others = [apply_seeded(transform, photo(0), seed) for seed in range(6, 30)]
    assert not any(torch.equal(other, first) for other in others)
    state = torch.get_rng_state()
    apply_seeded(transform, photo(0), 2**63 - 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_apply_seeded__restores_after_an_error() -> None:
    """The generator is put back also where the transform fails."""

    def fail(image: object) -> torch.Tensor:
        raise ZeroDivisionError

    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        apply_seeded(fail, photo(0), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_train_transform__options_do_what_they_say() -> None:
    """Flips at probability 0 and 1, the whole picture at scale 1, erased pixels at the mean."""
    options = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    image = photo(3, 32, 32)
    plain, mirrored, turned, erased = (
        apply_seeded(build_train_transform(SPEC, **options, **more), image, 0)  # type: ignore[arg-type]
        for more in (
            {"hflip": 0.0},
            {"hflip": 1.0},
            {"hflip": 0.0, "vflip": 1.0},
            {"hflip": 0.0, "random_erasing": 1.0},
        )
    )
    exact = build_eval_transform(PreprocessSpec(input_size=(3, 32, 32), crop_pct=1.0))(image)
    torch.testing.assert_close(plain, exact, rtol=0, atol=1e-6)
    assert torch.equal(mirrored, plain.flip(-1))
    assert torch.equal(turned, plain.flip(-2))
    gone = (erased != plain).any(0)
    assert 0 < gone.sum() < gone.numel()
    assert (erased[:, gone] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_augment": "randaugmet"}, "did you mean 'randaugment'"),
        ({"hflip": 1.5}, "hflip is 1.5"),
        ({"random_erasing": -0.1}, "random_erasing is -0.1"),
        ({"color_jitter": -1.0}, "color_jitter is -1.0"),
        ({"scale": (0.5, 0.2)}, "scale is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"scale": (0.5, 1.5)}, "at most 1"),
        ({"ratio": (0.0, 1.0)}, "ratio is"),
    ],
)
def test_train_transform__refuses_wrong_options(options: dict[str, object], message: str) -> None:
    """An option outside of what it allows is one line."""
    with pytest.raises(RequestError, match=message):
        build_train_transform(SPEC, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_transforms__many_channels_are_treated_alike(crop_mode: str) -> None:
    """Each channel of a picture of five comes out as a picture of that channel alone would, evaluated and varied."""
    picture = torch.randint(0, 256, (5, 30, 41), dtype=torch.uint8)
    spec = PreprocessSpec(input_size=(5, 16, 24), mean=(0.5,) * 5, std=(0.5,) * 5, crop_mode=crop_mode)
    one = PreprocessSpec(input_size=(1, 16, 24), mean=(0.5,), std=(0.5,), crop_mode=crop_mode)
    options = {"vflip": 0.5, "random_erasing": 1.0}
    for whole, single in (
        (build_eval_transform(spec), build_eval_transform(one)),
        (build_train_transform(spec, **options), build_train_transform(one, **options)),  # type: ignore[arg-type]
    ):
        got = apply_seeded(whole, picture, 3)
        assert (got.shape, got.dtype) == ((5, 16, 24), torch.float32)
        for channel in range(5):
            assert torch.equal(got[channel], apply_seeded(single, picture[channel : channel + 1], 3)[0])


def test_transforms__channels_must_be_the_models() -> None:
    """Pictures of other channels than the model's, and options for colours in a model of four, are one line."""
    spec = PreprocessSpec(input_size=(4, 8, 8), mean=(0.5,) * 4, std=(0.5,) * 4)
    for build in (build_train_transform, build_eval_transform):
        with pytest.raises(RequestError, match="has 3 channels and the model takes 4; set model.in_chans"):
            build(spec)(photo(0))
        with pytest.raises(RequestError, match="has 5 channels and the model takes 3"):
            build(SPEC)(torch.zeros(5, 8, 8, dtype=torch.uint8))
        with pytest.raises(RequestError, match="interpolation lanczos is for colours"):
            build(replace(spec, interpolation="lanczos"))
    with pytest.raises(RequestError, match="color_jitter, auto_augment is for colours"):
        build_train_transform(spec, color_jitter=0.4, auto_augment="randaugment")
