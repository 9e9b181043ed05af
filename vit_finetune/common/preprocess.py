"""How pixels become the numbers a checkpoint was trained on.

`PreprocessSpec` travels with the weights: from the file they came in, through the run, into the
model folder. Field names are timm's, so a folder's `pretrained_cfg` reads and writes as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
CROP_MODES = ("center", "squash", "border")
_FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """The evaluation transform of a checkpoint, in timm's words.

    Attributes:
        input_size: (channels, height, width) in pixels that the network sees.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divides after `mean`.
        interpolation: how images are resized: bicubic, bilinear, nearest or lanczos.
        crop_pct: the share of the resized image that the centre crop keeps, in (0, 1].
        crop_mode: "center" resizes the shorter side and crops, "squash" resizes both sides freely
            (then crops `crop_pct`), "border" resizes the longer side and pads.
        source: where the values come from, for people.
        assumed: names of the fields that no source told and that are therefore defaults.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    source: str = "defaults"
    assumed: tuple[str, ...] = _FIELDS

    def __post_init__(self) -> None:
        """Refuse values no transform can be built from.

        Raises:
            ValueError: a field is outside of what it allows.
        """
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode {self.crop_mode!r} is not one of {', '.join(CROP_MODES)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} is not in (0, 1]")
        channels = self.input_size[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} values for {channels} channels; "
                "give one per channel"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} holds a value that is not above 0")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, source: str) -> PreprocessSpec:
        """Read timm's preprocessing keys from a mapping; what it lacks is assumed, and named so.

        Args:
            values: any mapping; keys that are not preprocessing are ignored.
            source: where the mapping was read, for people.
        """
        known = {key: values[key] for key in _FIELDS if values.get(key) is not None}
        for key in ("input_size", "mean", "std"):
            if key in known:
                known[key] = tuple(known[key])
        if "interpolation" in known and known["interpolation"] not in INTERPOLATIONS:
            del known["interpolation"]
        return cls(**known, source=source, assumed=tuple(key for key in _FIELDS if key not in known))

    def to_mapping(self) -> dict[str, Any]:
        """Return timm's preprocessing keys as plain JSON values (lists for tuples)."""
        values = asdict(self)
        return {key: list(values[key]) if isinstance(values[key], tuple) else values[key] for key in _FIELDS}

    def with_size(self, height: int, width: int) -> PreprocessSpec:
        """Return the same preprocessing for another picture size in pixels."""
        return replace(self, input_size=(self.input_size[0], height, width))
