"""CLIP's vision tower as transformers writes it: alone, with its projection, inside the whole CLIP, or as a classifier.

`CLIPVisionModel`, `CLIPVisionModelWithProjection` and `CLIPModel` share one layout; the projection is our head, whose
bias must be zero. `CLIPForImageClassification` computes something else: its classifier takes the mean of the patches
before the final norm, which it holds and never uses.

Source: transformers 5 `models/clip/modeling_clip.py`. Verified against the library in both directions, bitwise.

Activation (quick in OpenAI's, erf in LAION's) and number of heads come from `config.json`. Older
files leave out of `vision_config` what is the family's default; it is read as the library reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vit_finetune.models.vit_config import ViTConfig
from vit_finetune.weights.formats.hf import config_of, fields_from, opened, reference
from vit_finetune.weights.rules import Constant, Format, Rule

_LAYER = "encoder.layers.{i}"
# The library's own; SigLIP's blocks are called the same.
TOWER_RULES = (
    Rule("embeddings.patch_embedding.{kind}", "patch_embed.proj.{kind}"),
    Rule("embeddings.position_embedding.weight", "pos_embed", "n d -> 1 n d"),
    Rule(f"{_LAYER}.layer_norm1.{{kind}}", "blocks.{i}.norm1.{kind}"),
    Rule(
        tuple(f"{_LAYER}.self_attn.{part}_proj.{{kind}}" for part in "qkv"),
        "blocks.{i}.attn.qkv.{kind}",
        "qkv o ... -> (qkv o) ...",
    ),
    Rule(f"{_LAYER}.self_attn.out_proj.{{kind}}", "blocks.{i}.attn.proj.{kind}"),
    Rule(f"{_LAYER}.layer_norm2.{{kind}}", "blocks.{i}.norm2.{kind}"),
    Rule(f"{_LAYER}.mlp.fc1.{{kind}}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule(f"{_LAYER}.mlp.fc2.{{kind}}", "blocks.{i}.mlp.fc2.{kind}"),
)
# What stands beside the vision tower in a whole model.
TEXT_SIDE = {
    "/text_model.{rest}": "the text tower",
    "/text_projection.{rest}": "the text tower's projection",
    "/logit_scale": "scales similarities of pictures and texts",
    "/logit_bias": "shifts similarities of pictures and texts",
}
POSITION_IDS = {"embeddings.position_ids": "counts rows; older versions wrote it"}

_DEFAULTS = {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
_RULES = (
    Rule("embeddings.class_embedding", "cls_token", "d -> 1 1 d"),
    *TOWER_RULES,
    Rule("pre_layrnorm.{kind}", "norm_pre.{kind}"),  # the library's own spelling
)
_PRESENT = ("embeddings.class_embedding", "embeddings.position_embedding.weight", "pre_layrnorm.weight")
_HOLDS: dict[str, tuple[Any, ...]] = {"norm_eps": (), "act_layer": (), "pre_norm": (True,)}


def tower_fields(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the configuration of a vision tower says, by itself or within a whole model's.

    Args:
        config: the parsed `config.json`.
        defaults: the family's, for keys that are left out.
    """
    return fields_from({**defaults, **(config.get("vision_config") or config)})


def tower_config(config: ViTConfig, *, model_type: str, architecture: str) -> dict[str, Any]:
    """Return the configuration of a vision tower."""
    values = config_of(config, model_type=model_type, architecture=architecture)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        del values[name]
    return {**values, "attention_dropout": 0.0}


def check_square(config: ViTConfig) -> str:
    """Say why a network can't be written: the library's vision towers are for squares."""
    if config.img_size[0] != config.img_size[1] or config.patch_size[0] != config.patch_size[1]:
        return f"img_size={config.img_size} with patch_size={config.patch_size} (it holds squares)"
    return ""


def check_classifier(config: ViTConfig) -> str:
    """Say why a network can't be written as a classifier."""
    return check_square(config) or ("" if config.num_classes else "no head (a classifier has one; keep it)")


def _config_from(config: Mapping[str, Any]) -> dict[str, Any]:
    return tower_fields(config, _DEFAULTS)


def _config_to(config: ViTConfig) -> dict[str, Any]:
    architecture = "CLIPVisionModelWithProjection" if config.num_classes else "CLIPVisionModel"
    values = tower_config(config, model_type="clip_vision_model", architecture=architecture)
    return {**values, "projection_dim": config.num_classes or 512}


def _classifier_config_to(config: ViTConfig) -> dict[str, Any]:
    tower = _config_to(config)
    del tower["architectures"]
    return {
        "architectures": ["CLIPForImageClassification"],
        "model_type": "clip",
        "vision_config": {**tower, "projection_dim": 512},
    }


def _reference(folder: Path, config: ViTConfig) -> Callable[[Tensor], Tensor]:
    """Return the forward pass: projected, or every token normed, which the library does for the class token only."""
    model = opened(folder)
    if config.num_classes:
        return lambda images: model(pixel_values=images).image_embeds
    tower = getattr(model, "vision_model", model)  # version 5 has it without a name of its own
    return lambda images: tower.post_layernorm(model(pixel_values=images).last_hidden_state)


HF_CLIP = Format(
    name="hf_clip",
    library="transformers",
    present=_PRESENT,
    absent=(".classifier.",),
    prefixes=("vision_model.",),
    # As version 4 writes it and both versions read it; version 5 leaves it out where there is no projection.
    prefix=lambda config: "vision_model.",  # noqa: ARG005 - one signature for all formats
    rules=(*_RULES, Rule("post_layernorm.{kind}", "norm.{kind}"), Rule("/visual_projection.weight", "head.weight")),
    ours_only=(
        Constant(
            name="head.bias",
            like="head.weight",
            reason="its projection has no bias; convert the network to timm, or leave the head out",
        ),
    ),
    drop=POSITION_IDS,
    aside=TEXT_SIDE,
    holds=_HOLDS,
    check=check_square,
    config_from=_config_from,
    config_to=_config_to,
    reference=_reference,
    pos_embed="hf",
)

HF_CLIP_CLASSIFIER = Format(
    name="hf_clip_classifier",
    library="transformers",
    present=(*_PRESENT, "classifier.weight"),
    prefixes=("vision_model.",),
    prefix=lambda config: "vision_model.",  # noqa: ARG005 - one signature for all formats
    rules=(*_RULES, Rule("/classifier.{kind}", "head.{kind}")),
    theirs_only=(
        Constant(name="post_layernorm.weight", like="norm_pre.weight", value=1.0),
        Constant(name="post_layernorm.bias", like="norm_pre.weight"),
    ),
    drop=POSITION_IDS,
    aside={"post_layernorm.{kind}": "a norm of the class token, which this classifier doesn't use"},
    holds={**_HOLDS, "global_pool": ("avg",), "final_norm": (False,)},
    check=check_classifier,
    config_from=_config_from,
    config_to=_classifier_config_to,
    reference=reference,
    pos_embed="hf",
)

FORMATS = (HF_CLIP, HF_CLIP_CLASSIFIER)
