"""transformers' SigLIP: the vision tower with and without pooling, inside the whole model, and as a classifier."""

from __future__ import annotations

from formats_helpers import Case
from formats_hf_helpers import SIZES, TEXT_SIZES, logits, pooled, saved, tokens

WHOLE = {"text_config": TEXT_SIZES, "vision_config": SIZES}

CASES = [
    Case(
        name="hf_siglip tower",
        format="hf_siglip",
        build=saved("SiglipVisionModel", "SiglipVisionConfig", **SIZES),
        forward=pooled,
        compare="pooled",
    ),
    Case(
        name="hf_siglip tower, in memory",
        format="hf_siglip",
        build=saved("SiglipVisionModel", "SiglipVisionConfig", in_memory=True, **SIZES),
        forward=tokens,
        compare="tokens",
    ),
    Case(
        name="hf_siglip tower without pooling",
        format="hf_siglip",
        build=saved("SiglipVisionModel", "SiglipVisionConfig", **SIZES, vision_use_head=False, hidden_act="gelu"),
        forward=tokens,
        compare="tokens",
    ),
    Case(
        name="hf_siglip whole",
        format="hf_siglip",
        build=saved("SiglipModel", "SiglipConfig", **WHOLE),
        forward=lambda model, images: model.vision_model(images).pooler_output,
        compare="pooled",
    ),
    Case(
        name="hf_siglip_classifier",
        format="hf_siglip_classifier",
        build=saved("SiglipForImageClassification", "SiglipConfig", **WHOLE, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_siglip_classifier, in memory",
        format="hf_siglip_classifier",
        build=saved("SiglipForImageClassification", "SiglipConfig", in_memory=True, **WHOLE, num_labels=5),
        forward=logits,
    ),
]
