"""transformers' DINOv3: plain and gated, with and without biases, on disk and in memory."""

from __future__ import annotations

from formats_helpers import Case, Saved
from formats_hf_helpers import SIZES, saved, tokens

# Heads of 8 and pictures that are no square: rows and columns can't be swapped unseen.
DINOV3 = {**SIZES, "num_register_tokens": 3}
# transformers' angles are float32 in float64 networks; ours are exact there.
TOLERANCE = 1e-7


def backbone(folder):
    """Save the backbone class, and return the model class that opens its folder: all tokens, not maps of features."""
    import transformers

    _, source = saved("DINOv3ViTBackbone", "DINOv3ViTConfig", **DINOV3)(folder)
    model = transformers.DINOv3ViTModel.from_pretrained(folder, attn_implementation="sdpa")
    return Saved(model.eval(), source)


def case(name, *, build=None, in_memory=False, **options):
    """Return a case of this family."""
    return Case(
        name=f"hf_dinov3 {name}",
        format="hf_dinov3",
        build=build or saved("DINOv3ViTModel", "DINOv3ViTConfig", in_memory=in_memory, **DINOV3 | options),
        forward=tokens,
        compare="tokens",
        img_size=(32, 48),
        tolerance=TOLERANCE,
    )


CASES = [
    case("plain"),
    case("in memory", in_memory=True),
    case("gated", use_gated_mlp=True, hidden_act="silu"),
    case("gated, in memory", in_memory=True, use_gated_mlp=True, hidden_act="silu"),
    case("without biases", query_bias=False, value_bias=False),
    case("with a bias of keys", key_bias=True, rope_theta=30.0),
    case("without registers", num_register_tokens=0),
    case("backbone class", build=backbone),
]
