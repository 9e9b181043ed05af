"""transformers' CLIP: the vision tower alone, projected, inside the whole model, and as a classifier."""

from __future__ import annotations

import json

import torch
from formats_helpers import Case, Saved
from formats_hf_helpers import SIZES, TEXT_SIZES, logits, pooled, saved
from safetensors.torch import load_file, save_file

VISION = SIZES | {"projection_dim": 24}
WHOLE = {"text_config": TEXT_SIZES, "vision_config": VISION, "projection_dim": 24}


def normed_tokens(model, images):
    """Run the tower and norm every token, which the library does for the class token only."""
    tower = getattr(model, "vision_model", model)
    return tower.post_layernorm(tower(images).last_hidden_state)


def as_older_versions(folder):
    """Save the whole CLIP as older versions did: with row numbers, and without what is the family's default."""
    model, _ = saved("CLIPModel", "CLIPConfig", **WHOLE | {"vision_config": VISION | {"num_attention_heads": 12,
                     "hidden_size": 48}})(folder)  # fmt: skip
    tensors = load_file(folder / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    tensors["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        del config["vision_config"][name]
    (folder / "config.json").write_text(json.dumps(config))
    return Saved(model, folder)


CASES = [
    Case(
        name="hf_clip tower",
        format="hf_clip",
        build=saved("CLIPVisionModel", "CLIPVisionConfig", **VISION, hidden_act="gelu"),
        forward=pooled,
        compare="pooled",
    ),
    Case(
        name="hf_clip tower, in memory",
        format="hf_clip",
        build=saved("CLIPVisionModel", "CLIPVisionConfig", in_memory=True, **VISION),
        forward=normed_tokens,
        compare="tokens",
    ),
    Case(
        name="hf_clip projected",
        format="hf_clip",
        build=saved("CLIPVisionModelWithProjection", "CLIPVisionConfig", **VISION),
        forward=lambda model, images: model(images).image_embeds,
    ),
    Case(
        name="hf_clip whole",
        format="hf_clip",
        build=saved("CLIPModel", "CLIPConfig", **WHOLE),
        forward=lambda model, images: model.get_image_features(images).pooler_output,
    ),
    Case(
        name="hf_clip whole, older file",
        format="hf_clip",
        build=as_older_versions,
        forward=lambda model, images: model.visual_projection(model.vision_model(images).pooler_output),
    ),
    Case(
        name="hf_clip_classifier",
        format="hf_clip_classifier",
        build=saved("CLIPForImageClassification", "CLIPConfig", **WHOLE, num_labels=5),
        forward=logits,
    ),
    Case(
        name="hf_clip_classifier, in memory",
        format="hf_clip_classifier",
        build=saved("CLIPForImageClassification", "CLIPConfig", in_memory=True, **WHOLE, num_labels=5),
        forward=logits,
    ),
]
