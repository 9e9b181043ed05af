"""Pictures, RGB or many channels, -> the tensors that a checkpoint expects, from its `PreprocessSpec`.

The evaluation transform is timm's, number for number; the training transforms are torchvision's v2.
Everything random draws from torch's default generator, and `apply_seeded` makes that a pure function
of (picture, seed). Mixup and CutMix mix batches and are not here.

Sources: timm 1.0, data/transforms_factory.py (what is equal is tested); Inception crop: Szegedy et al.
2014 (arXiv 1409.4842); RandAugment: 1909.13719; TrivialAugment: 2103.10158; random erasing: 1708.04896.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.common.suggest import did_you_mean
from vit_finetune.data.image_set import Picture
from vit_finetune.data.pixels import BYTES_INTERPOLATIONS, CropOfBytes, FlipOfBytes, Normalise, ToImage, ToTensor

Transform = Callable[[Picture], Tensor]
RESIZERS = ("pil", "torch")
AUTO_AUGMENTS = ("randaugment", "trivialaugment")


def apply_seeded(transform: Transform, image: Picture, seed: int) -> Tensor:
    """Apply a transform so that its result depends on the picture and the seed alone.

    torch's default generator is seeded and put back as it was (7 us; `torch.random.fork_rng` takes 600).
    Not for threads: the generator is global.

    Args:
        transform: any transform that draws from torch's default generator and from nothing else, as torchvision's do.
        image: an RGB picture, or one of other channels, as the transform takes it.
        seed: in [0, 2**63).

    Returns:
        What the transform returns.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        return transform(image)
    finally:
        generator.set_state(state)


def build_train_transform(
    spec: PreprocessSpec,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float = 0.0,
    auto_augment: str | None = None,
    random_erasing: float = 0.0,
    resizer: str = "pil",
    as_bytes: bool = False,
) -> Transform:
    """Build the training transform.

    Args:
        spec: size, interpolation, mean and std; its crop fields are for evaluation.
        scale: smallest and largest share of the picture's area that the random crop takes, in (0, 1].
        ratio: smallest and largest width / height of the crop, before it is resized.
        hflip: probability of mirroring left and right.
        vflip: probability of mirroring top and bottom.
        color_jitter: brightness, contrast and saturation each change by a factor of 1 +- this, 0 or more.
        auto_augment: "randaugment" (2 operations of magnitude 9), "trivialaugment", or None.
        random_erasing: probability of replacing a rectangle by the mean colour.
        resizer: "pil", or "torch", about three times as fast: torch's own kernels on bytes. The same draws; pixels
            differ from Pillow's by rounding, and colour operations by torchvision's two ways to do them.
        as_bytes: leave normalising to `pixels.Normalise`, on the device; not with `random_erasing`.

    Returns:
        A picklable function: RGB picture, or one of other channels, -> [C, H, W] float32, normalised; uint8 with
        `as_bytes`.

    Raises:
        RequestError: an option is outside of what it allows, or is for colours and the model takes other channels.
    """
    _check_range("scale", scale, 1.0)
    _check_range("ratio", ratio, math.inf)
    for name, probability in (("hflip", hflip), ("vflip", vflip), ("random_erasing", random_erasing)):
        if not 0 <= probability <= 1:
            raise RequestError(f"{name} is {probability}; a probability is between 0 and 1")
    if color_jitter < 0:
        raise RequestError(f"color_jitter is {color_jitter}; it must be 0 or more")
    _check_resizer(spec, resizer, as_bytes=as_bytes, random_erasing=random_erasing)
    interpolation = v2.InterpolationMode(spec.interpolation)
    crop = v2.RandomResizedCrop if resizer == "pil" else CropOfBytes
    steps = [
        ToImage() if resizer == "pil" else ToTensor(),
        *_channels(spec, color_jitter=color_jitter, auto_augment=auto_augment),
        crop(spec.input_size[1:], scale=scale, ratio=ratio, interpolation=interpolation),
        *_flips(hflip, vflip, of_pillow=resizer == "pil"),
        *_auto_augment(auto_augment, spec),
        *([v2.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []),
        *_finished(spec, of_pillow=resizer == "pil", as_bytes=as_bytes),
        *([v2.RandomErasing(random_erasing)] if random_erasing else []),
    ]
    transform: Transform = v2.Compose(steps)
    return transform


def build_eval_crop(
    spec: PreprocessSpec, *, corruption: torch.nn.Module | None = None
) -> Callable[[Picture], Image.Image | Tensor]:
    """Build the first half of the evaluation transform: resize and crop, which nothing random comes before.

    Args:
        spec: size, interpolation and crop.
        corruption: that the second half will do, to be refused where the model takes other channels than colours.

    Returns:
        A picklable function: RGB picture, or one of other channels, -> the picture of bytes that the model sees.

    Raises:
        RequestError: the interpolation or corruption is for colours and the model takes other channels.
    """
    size = spec.input_size[1:]
    height, width = (math.floor(side / spec.crop_pct) for side in size)
    interpolation = v2.InterpolationMode(spec.interpolation)
    if spec.crop_mode == "squash":
        resize = [v2.Resize((height, width), interpolation=interpolation), v2.CenterCrop(size)]
    elif spec.crop_mode == "border":
        resize = [_FitResize((height, width), interpolation, inside=True), _CropOrPad(size, _mean_color(spec))]
    elif height == width:  # two ways because timm has two: the longer side is rounded down here, to the nearest below
        resize = [v2.Resize(height, interpolation=interpolation), v2.CenterCrop(size)]
    else:
        resize = [_FitResize((height, width), interpolation, inside=False), v2.CenterCrop(size)]
    steps = [ToImage(), *_channels(spec, corruptions=corruption), *resize]
    crop: Callable[[Picture], Image.Image | Tensor] = v2.Compose(steps)
    return crop


def build_eval_rest(
    spec: PreprocessSpec, *, corruption: torch.nn.Module | None = None, as_bytes: bool = False
) -> Transform:
    """Build the second half of the evaluation transform.

    Args:
        spec: mean and std.
        corruption: as for `build_eval_transform`.
        as_bytes: leave normalising to `pixels.Normalise`, on the device.

    Returns:
        A picklable function: what the first half returns, or an array of it -> [C, H, W] float32, or uint8.
    """
    corrupted = [ToTensor()] if corruption is None else [ToImage(), corruption]
    finished = _finished(spec, of_pillow=corruption is not None, as_bytes=as_bytes)
    transform: Transform = v2.Compose([*corrupted, *finished])
    return transform


def build_eval_transform(spec: PreprocessSpec, *, corruption: torch.nn.Module | None = None) -> Transform:
    """Build the evaluation transform, timm's number for number.

    Args:
        spec: all of it; see its `crop_mode` for the three ways.
        corruption: what is done to the cropped picture of bytes; see `corruptions.Corruption`.

    Returns:
        A picklable function: RGB picture, or [C, H, W] uint8 of other channels, -> [C, H, W] float32, normalised.

    Raises:
        RequestError: the interpolation or corruption is for colours and the model takes other channels.
    """
    transform: Transform = v2.Compose(
        [build_eval_crop(spec, corruption=corruption), build_eval_rest(spec, corruption=corruption)]
    )
    return transform


class _FitResize(torch.nn.Module):
    """Resize a picture, shape kept, to fit inside a box or to cover it."""

    def __init__(self, size: tuple[int, int], interpolation: v2.InterpolationMode, *, inside: bool) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation
        self.inside = inside

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Return the resized picture."""
        height, width = tvf.get_size(image)
        ratios = height / self.size[0], width / self.size[1]
        ratio = max(ratios) if self.inside else min(ratios)
        size = [max(round(side / ratio), 1) for side in (height, width)]
        resized: Image.Image | Tensor = tvf.resize(image, size, interpolation=self.interpolation)
        return resized


class _CropOrPad(torch.nn.Module):
    """Cut the centre out of a picture; where the picture is smaller, surround it with a colour."""

    def __init__(self, size: tuple[int, int], color: list[int]) -> None:
        super().__init__()
        self.size = size
        self.color = color

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Return the picture in exactly the size asked for."""
        height, width = tvf.get_size(image)
        down, right = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        if down or right:
            padding = [right // 2, down // 2, right - right // 2, down - down // 2]  # left, top, right, bottom
            image = tvf.pad(image, padding, fill=self.color)
        cut: Image.Image | Tensor = tvf.center_crop(image, list(self.size))
        return cut


class _TakeChannels(torch.nn.Module):
    """Make a picture what the model takes: gray first of all, as timm's reader does; of other channels nothing fits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.to_gray = v2.Grayscale() if channels == 1 else None

    def forward(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Return the picture with the model's channels."""
        has = 3 if isinstance(image, Image.Image) else len(image)
        if has != self.channels and (has != 3 or self.to_gray is None):
            raise RequestError(
                f"the picture has {has} channels and the model takes {self.channels}; set model.in_chans to the "
                "pictures' number (alpha is transparency, never a channel)"
            )
        taken: Image.Image | Tensor = image if self.to_gray is None or has == 1 else self.to_gray(image)
        return taken


def _channels(spec: PreprocessSpec, **for_colors: object) -> list[torch.nn.Module]:
    """Return the step that makes a picture what the model takes; refuse what only pictures of colours allow."""
    channels = spec.input_size[0]
    if channels not in (1, 3):
        asked = [name for name, value in for_colors.items() if value]
        asked += ["interpolation lanczos"] if spec.interpolation == "lanczos" else []
        if asked:
            raise RequestError(
                f"the model takes {channels} channels, and {', '.join(asked)} is for colours; leave it out"
            )
    return [_TakeChannels(channels)]


def _finished(spec: PreprocessSpec, *, of_pillow: bool, as_bytes: bool) -> list[torch.nn.Module]:
    """Return the steps from a picture of bytes, Pillow's or a tensor, to normalised float32, or to a uint8 tensor."""
    return [*([v2.PILToTensor()] if of_pillow else []), *([] if as_bytes else [Normalise(spec.mean, spec.std)])]


def _flips(hflip: float, vflip: float, *, of_pillow: bool) -> list[torch.nn.Module]:
    """Return the steps that mirror a picture, Pillow's or a tensor."""
    steps = ((hflip, v2.RandomHorizontalFlip, -1), (vflip, v2.RandomVerticalFlip, -2))
    return [flip(share) if of_pillow else FlipOfBytes(share, dim) for share, flip, dim in steps if share]


def _auto_augment(name: str | None, spec: PreprocessSpec) -> list[torch.nn.Module]:
    """Return the automatic augmentation of that name; what it uncovers becomes the mean colour."""
    if name is None:
        return []
    options = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": _mean_color(spec)}
    if name == "randaugment":
        return [v2.RandAugment(**options)]
    if name == "trivialaugment":
        return [v2.TrivialAugmentWide(**options)]
    raise RequestError(
        f"auto_augment is {name!r}{did_you_mean(name, AUTO_AUGMENTS)}; it is one of {', '.join(AUTO_AUGMENTS)}, or null"
    )


def _mean_color(spec: PreprocessSpec) -> list[int]:
    """Return the mean as a colour of bytes."""
    return [round(255 * value) for value in spec.mean]


def _check_resizer(spec: PreprocessSpec, resizer: str, *, as_bytes: bool, random_erasing: float) -> None:
    """Refuse what the quick ways do not know."""
    if resizer not in RESIZERS:
        raise RequestError(f"resizer is {resizer!r}; it is one of {', '.join(RESIZERS)}")
    if resizer == "torch" and spec.interpolation not in BYTES_INTERPOLATIONS:
        known = ", ".join(BYTES_INTERPOLATIONS)
        raise RequestError(f"resizer torch does not know {spec.interpolation}; it knows {known}; or give resizer pil")
    if as_bytes and random_erasing:
        raise RequestError("random_erasing puts the mean into normalised pictures; with it, as_bytes is not possible")


def _check_range(name: str, limits: tuple[float, float], largest: float) -> None:
    """Refuse limits that are not positive and in order."""
    if len(limits) != 2 or not 0 < limits[0] <= limits[1] <= largest:
        below = "" if math.isinf(largest) else f" and at most {largest:g}"
        raise RequestError(f"{name} is {tuple(limits)}; it is (smallest, largest), both above 0{below}")
