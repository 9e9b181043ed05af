"""transformers' DeiT: one head, two heads, none; on disk and in memory."""

from __future__ import annotations

from formats_helpers import Case
from formats_hf_helpers import SIZES, logits, saved, tokens

CASES = [
    Case(
        name="hf_deit one head",
        format="hf_deit",
        build=saved("DeiTForImageClassification", "DeiTConfig", **SIZES, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_deit one head, in memory",
        format="hf_deit",
        build=saved("DeiTForImageClassification", "DeiTConfig", in_memory=True, **SIZES, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_deit backbone, no qkv bias",
        format="hf_deit",
        build=saved("DeiTModel", "DeiTConfig", **SIZES, qkv_bias=False),
        forward=tokens,
        compare="tokens",
    ),
    Case(
        name="hf_deit masked pre-training",
        format="hf_deit",
        build=saved("DeiTForMaskedImageModeling", "DeiTConfig", **SIZES, encoder_stride=8),
        forward=lambda model, images: model.deit(images).last_hidden_state,
        compare="tokens",
    ),
    Case(
        name="hf_deit_distilled",
        format="hf_deit_distilled",
        build=saved("DeiTForImageClassificationWithTeacher", "DeiTConfig", **SIZES, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_deit_distilled, in memory",
        format="hf_deit_distilled",
        build=saved("DeiTForImageClassificationWithTeacher", "DeiTConfig", in_memory=True, **SIZES, num_labels=5),
        forward=logits,
    ),
]
