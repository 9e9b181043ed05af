"""DINOv3 as facebook research released it, restated: plain, gated, with the bias of keys, without registers."""

from __future__ import annotations

from formats_dinov3_helpers import saved
from formats_helpers import Case


def case(name, **options):
    """Return a case of this family; the released files keep periods in float32, ours are exact in float64."""
    return Case(
        name=f"facebook_dinov3 {name}",
        format="facebook_dinov3",
        build=saved(**options),
        forward=lambda model, images: model(images),
        compare="tokens",
        img_size=(32, 48),
        tolerance=1e-7,
    )


CASES = [
    case("plain"),
    case("gated", gated=True),
    case("keys with their bias", masked=False),
    case("without registers", registers=0),
]
