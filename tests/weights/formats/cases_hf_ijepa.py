"""transformers' I-JEPA: classifier and backbone, on disk and in memory."""

from __future__ import annotations

from formats_helpers import Case
from formats_hf_helpers import SIZES, logits, saved, tokens

CASES = [
    Case(
        name="hf_ijepa classifier",
        format="hf_ijepa",
        build=saved("IJepaForImageClassification", "IJepaConfig", **SIZES, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_ijepa classifier, in memory",
        format="hf_ijepa",
        build=saved("IJepaForImageClassification", "IJepaConfig", in_memory=True, **SIZES, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_ijepa backbone, oblong",
        format="hf_ijepa",
        build=saved("IJepaModel", "IJepaConfig", **SIZES | {"image_size": [32, 48]}, hidden_act="quick_gelu"),
        forward=tokens,
        compare="tokens",
        img_size=(32, 48),
    ),
]
