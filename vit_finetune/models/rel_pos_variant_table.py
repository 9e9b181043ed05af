"""Every BEiT that timm 1.0 registers, one row each: data only, read by `variants.py`.

A row is patch size and image size in pixels, number of classes, a size (width, depth, heads) and LayerScale's start.

Source: the entry points of `timm/models/beit.py`, read off timm 1.0.31.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]

BASE: Fields = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE: Fields = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
TENTH: Fields = {"init_values": 0.1}
TINY: Fields = {"init_values": 1e-5}

REL_POS_VARIANTS: dict[str, tuple[int, int, int, Fields, Fields]] = {
    "beit_base_patch16_224": (16, 224, 1000, BASE, TENTH),
    "beit_base_patch16_384": (16, 384, 1000, BASE, TENTH),
    "beit_large_patch16_224": (16, 224, 1000, LARGE, TINY),
    "beit_large_patch16_384": (16, 384, 1000, LARGE, TINY),
    "beit_large_patch16_512": (16, 512, 1000, LARGE, TINY),
    "beitv2_base_patch16_224": (16, 224, 1000, BASE, TINY),
    "beitv2_large_patch16_224": (16, 224, 1000, LARGE, TINY),
}
