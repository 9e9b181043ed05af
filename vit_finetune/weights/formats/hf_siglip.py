"""SigLIP's vision tower as transformers writes it: alone, inside the whole SigLIP, or as a classifier.

`SiglipVisionModel` pools with attention, or not at all (`vision_use_head`); `SiglipModel` holds it beside a text tower.
`SiglipForImageClassification` takes the mean of the normed patches and never uses the pooling that its file has.
SigLIP 2 has these classes at fixed sizes. Its NaFlex models have the same names and a patch embedding for any number of
patches, which is another network (`hf_others.py`).

Source: transformers 5 `models/siglip/modeling_siglip.py`. Verified against the library in both directions, bitwise.
Activation is the tanh form of GELU, unlike in timm's older SigLIP names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import reference
from vit_finetune.weights.formats.hf_clip import (
    POSITION_IDS,
    TEXT_SIDE,
    TOWER_RULES,
    check_classifier,
    check_square,
    tower_config,
    tower_fields,
)
from vit_finetune.weights.rules import Format, Rule

_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
_PATCHES = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"
_KERNELS = {_PATCHES: 4}  # which NaFlex has as a matrix
_POOLING_RULES = (
    Rule("head.probe", "attn_pool.latent"),
    Rule("head.attention.in_proj_{kind}", ("attn_pool.q.{kind}", "attn_pool.kv.{kind}"), shares=(1, 2)),
    Rule("head.attention.out_proj.{kind}", "attn_pool.proj.{kind}"),
    Rule("head.layernorm.{kind}", "attn_pool.norm.{kind}"),
    Rule("head.mlp.fc1.{kind}", "attn_pool.mlp.fc1.{kind}"),
    Rule("head.mlp.fc2.{kind}", "attn_pool.mlp.fc2.{kind}"),
)
_NORM_RULE = Rule("post_layernorm.{kind}", "norm.{kind}")
_HOLDS: dict[str, tuple[Any, ...]] = {"norm_eps": (), "act_layer": (), "class_token": (False,)}


def _told(shapes: Mapping[str, tuple[int, ...]], fields: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - as all
    return {"global_pool": "map" if "head.probe" in shapes else ""}


def _config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    return tower_fields(config, _DEFAULTS)


def _config_to(config: ViTConfig) -> dict[str, Any]:
    values = tower_config(config, model_type="siglip_vision_model", architecture="SiglipVisionModel")
    return {**values, "vision_use_head": config.global_pool == "map"}


def _classifier_config_to(config: ViTConfig) -> dict[str, Any]:
    tower = _config_to(config)  # says that there is no pooling by attention, which the classifier would ignore
    del tower["architectures"]
    return {
        "architectures": ["SiglipForImageClassification"],
        "model_type": "siglip",
        "vision_config": tower,
    }


HF_SIGLIP = Format(
    name="hf_siglip",
    library="transformers",
    present=(_PATCHES, "embeddings.patch_embedding.bias", _POSITIONS, "post_layernorm.weight"),
    absent=(".class_embedding", ".classifier."),
    dims=_KERNELS,
    prefixes=("vision_model.",),
    # As version 4 writes it and both versions read it; version 5 leaves it out.
    prefix=lambda config: "vision_model.",  # noqa: ARG005 - one signature for all formats
    rules=(*TOWER_RULES, _NORM_RULE, *_POOLING_RULES),
    drop=POSITION_IDS,
    aside=TEXT_SIDE,
    unplaced={
        "head.{kind}": "SigLIP's vision tower ends with pooling; leave the head out, or convert a network with "
        "global_pool='avg' to hf_siglip_classifier"
    },
    holds={**_HOLDS, "global_pool": ("map", "")},
    told=_told,
    check=check_square,
    config_from=_config_from,
    config_to=_config_to,
    reference=reference,
    pos_embed="hf",
)

HF_SIGLIP_CLASSIFIER = Format(
    name="hf_siglip_classifier",
    library="transformers",
    present=(_PATCHES, "embeddings.patch_embedding.bias", _POSITIONS, "classifier.weight"),
    absent=(".class_embedding",),
    dims=_KERNELS,
    prefixes=("vision_model.",),
    prefix=lambda config: "vision_model.",  # noqa: ARG005 - one signature for all formats
    rules=(*TOWER_RULES, _NORM_RULE, Rule("/classifier.{kind}", "head.{kind}")),
    drop=POSITION_IDS,
    aside={"head.{rest}": "pooling by attention, which this classifier doesn't use"},
    holds={**_HOLDS, "global_pool": ("avg",), "fc_norm": (False,)},
    check=check_classifier,
    config_from=_config_from,
    config_to=_classifier_config_to,
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_SIGLIP, HF_SIGLIP_CLASSIFIER)
