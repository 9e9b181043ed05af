"""transformers' BEiT and Data2Vec: both poolings, masked pre-training, on disk and in memory."""

from __future__ import annotations

from formats_helpers import Case
from formats_hf_helpers import SIZES, logits, saved, tokens

BIASED = {**SIZES, "use_relative_position_bias": True}


def pretrained_tokens(model, images):
    """Run masked pre-training's network up to its final norm, which is outside of the backbone."""
    return model.layernorm(model.beit(images).last_hidden_state)


def case(
    name, class_name="BeitModel", config="BeitConfig", *, forward=tokens, back="bitwise", tolerance=1e-10, **options
):
    """Return a case of this family."""
    in_memory = options.pop("in_memory", False)
    return Case(
        name=f"hf_beit {name}",
        format="hf_beit",
        build=saved(class_name, config, in_memory=in_memory, **BIASED | options),
        forward=forward,
        compare="logits" if forward is logits else "tokens",
        back=back,
        tolerance=tolerance,
    )


CASES = [
    case("classifier", "BeitForImageClassification", forward=logits, num_labels=5),
    case("classifier, in memory", "BeitForImageClassification", forward=logits, in_memory=True, num_labels=5),
    case("classifier of the class token", "BeitForImageClassification", forward=logits, use_mean_pooling=False),
    case("backbone of means"),
    case("backbone, no LayerScale", use_mean_pooling=False, layer_scale_init_value=0.0),
    case(
        "masked pre-training, one table for all",
        "BeitForMaskedImageModeling",
        forward=pretrained_tokens,
        back="functional",
        use_relative_position_bias=False,
        use_shared_relative_position_bias=True,
        use_mask_token=True,
        vocab_size=7,
    ),
    case(
        "both kinds of tables, in memory",
        "BeitForImageClassification",
        forward=logits,
        back="functional",
        tolerance=1e-7,  # two tables are added in float32
        in_memory=True,
        use_shared_relative_position_bias=True,
    ),
    case(
        "Data2Vec",
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        forward=logits,
        num_labels=5,
    ),
]
