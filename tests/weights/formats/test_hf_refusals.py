"""What transformers' formats refuse, in reading and in writing: named, with the reason and the way out."""

from __future__ import annotations

import pytest
import torch
from formats_hf_helpers import SIZES, saved

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.models import VisionTransformer, ViTConfig
from vit_finetune.weights import convert_state_dict, detect_format, read_source
from vit_finetune.weights.conversion import converted_from

TINY = {"img_size": (32, 32), "patch_size": (8, 8), "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 5}
CLIP = {"pre_norm": True, "norm_eps": 1e-5}
BIASED = SIZES | {"use_relative_position_bias": True}
NO_SIZE = {name: value for name, value in SIZES.items() if name != "image_size"}


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("class_name", "config_name", "options", "known_as", "reason"),
    [
        ("BeitForImageClassification", "BeitConfig", SIZES | {"use_absolute_position_embeddings": True}, "hf_beit",
         "positions that are added"),
        ("BeitForSemanticSegmentation", "BeitConfig", BIASED | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
         "hf_beit", "a head for segmentation"),
        ("BeitModel", "BeitConfig", BIASED | {"hidden_act": "silu"}, "hf_beit", "hidden_act='silu'"),
        ("DINOv3ViTModel", "DINOv3ViTConfig", SIZES | {"use_gated_mlp": True}, "hf_dinov3",
         "hidden_act='gelu' with use_gated_mlp=True"),
        ("Siglip2VisionModel", "Siglip2VisionConfig", NO_SIZE | {"num_patches": 16}, "hf_siglip2_naflex",
         "google/siglip2-base-patch16-224"),
    ],
)  # fmt: skip
def test_reading__relatives_are_refused_by_name(
    tmp_path, class_name, config_name, options, known_as, reason, in_memory
):
    """A network that no plain ViT is gets recognised, and refused with the reason and what to take instead."""
    _, source = saved(class_name, config_name, in_memory=in_memory, **options)(tmp_path)
    checkpoint = read_source(source)
    assert detect_format(checkpoint.tensors) == known_as
    with pytest.raises(NotRepresentable, match=reason):
        converted_from(checkpoint)


@pytest.mark.parametrize("prefix", ["dinov2", "dinov2_with_registers"])
def test_reading__wide_classifier_is_dropped_with_the_reason(tmp_path, prefix):
    """A classifier on class token and mean patch together has no counterpart: it is left out, and told why."""
    name = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[prefix]
    options = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    _, source = saved(f"{name}ForImageClassification", f"{name}Config", **options, num_labels=3)(tmp_path)
    converted = converted_from(read_source(source))
    assert "class token and mean patch" in converted.dropped["classifier.weight"]
    assert converted.dropped.keys() == {"classifier.weight", "classifier.bias", f"{prefix}.embeddings.mask_token"}
    assert "head.weight" not in converted.tensors


def test_reading__unknown_activation(tmp_path):
    """An activation that our networks lack is refused by name."""
    _, source = saved("ViTModel", "ViTConfig", **SIZES, hidden_act="relu")(tmp_path)
    with pytest.raises(NotRepresentable, match="hidden_act='relu' is none of gelu"):
        converted_from(read_source(source))


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("hf_clip", CLIP, r"no place for head\.bias, which is not 0 .* its projection has no bias; .* to timm"),
        ("hf_clip", {"norm_eps": 1e-5}, "pre_norm=False"),
        ("hf_clip", CLIP | {"img_size": (32, 48)}, "it holds squares"),
        ("hf_clip_classifier", CLIP | {"global_pool": "avg", "final_norm": False, "num_classes": 0}, "no head"),
        ("hf_clip_classifier", CLIP, "global_pool='token'"),
        ("hf_siglip", {"class_token": False, "global_pool": "map"}, "ends with pooling; leave the head out"),
        ("hf_siglip_classifier", {"class_token": False, "global_pool": "avg"}, "fc_norm=True"),
        ("hf_deit", {}, "reg_tokens=0"),
        ("hf_deit_distilled", {"distilled": True, "num_classes": 0}, "no heads"),
        ("hf_ijepa", {}, "class_token=True"),
        ("hf_dinov2", {"img_size": (16, 64)}, "other pictures than squares"),
        ("hf_dinov2", {"global_pool": "avg"}, "global_pool='avg'"),
        ("hf_dinov2", {"num_classes": 0, "mlp_ratio": 1.5}, "whole numbers"),
        ("hf_dinov2", {"num_classes": 0, "reg_tokens": 2}, "reg_tokens=2"),
        ("hf_dinov2_with_registers", {"num_classes": 0}, "hf_dinov2 holds it"),
        ("hf_dinov3", {}, "it is a plain ViT, and hf_dinov3 is for a ViT with rotary positions"),
        ("hf_beit", {}, "hf_beit is for a ViT with relative positions"),
        ("hf_siglip2_naflex", {}, "resized for each picture"),
    ],
)  # fmt: skip
def test_writing__says_what_has_no_words(target, options, reason):
    """A network that a format can't say is refused before anything is written, naming the option."""
    torch.manual_seed(0)
    config = ViTConfig.from_mapping(TINY | options)
    tensors = VisionTransformer(config).state_dict()
    if "head.bias" in tensors:
        torch.nn.init.ones_(tensors["head.bias"])
    with pytest.raises(NotRepresentable, match=reason):
        convert_state_dict(tensors, to=target, config=config)
