"""transformers' DINOv2 with registers: plain and gated, on disk and in memory.

The class token's position is added to the token. That sum is rounded once, in the file's precision: weights stored in
float64 show that nothing else differs, float32 ones get float32's tolerance.
"""

from __future__ import annotations

import torch
from formats_helpers import Case
from formats_hf_helpers import SIZES, saved

ROUNDED_SUM = 1e-6
OPTIONS = {name: value for name, value in SIZES.items() if name != "intermediate_size"} | {"num_register_tokens": 3}


def tokens(model, images):
    """Run the backbone, which a classifier holds under its own name."""
    return getattr(model, "dinov2_with_registers", model)(images).last_hidden_state


def case(name, class_name, tolerance=ROUNDED_SUM, **options):
    """Return a case; they differ in little."""
    build = saved(class_name, "Dinov2WithRegistersConfig", **OPTIONS, **options)
    return Case(
        name=name,
        format="hf_dinov2_with_registers",
        build=build,
        forward=tokens,
        compare="tokens",
        tolerance=tolerance,
        back="functional",
    )


CASES = [
    case("hf_dinov2 registers", "Dinov2WithRegistersModel"),
    case("hf_dinov2 registers, in float64", "Dinov2WithRegistersModel", tolerance=1e-10, dtype=torch.float64),
    case("hf_dinov2 registers, gated", "Dinov2WithRegistersModel", use_swiglu_ffn=True),
    case("hf_dinov2 registers, in memory", "Dinov2WithRegistersModel", in_memory=True, use_swiglu_ffn=True),
    case("hf_dinov2 registers, head aside", "Dinov2WithRegistersForImageClassification", num_labels=3),
]
