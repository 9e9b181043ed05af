"""Folders that we write for transformers: its own classes open them with nothing missing, left over or resized."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from formats_helpers import randomize
from formats_hf_helpers import SIZES, assert_known, saved
from safetensors.torch import save_file

from vit_finetune.models import VisionTransformer, ViTConfig, create_model
from vit_finetune.weights import convert_checkpoint, load_pretrained

TINY = {"img_size": (32, 32), "patch_size": (8, 8), "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
DINO = {"num_classes": 0, "init_values": 1e-5}
GATED = {"mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 2 * 88 / 32}
SIGLIP = {"class_token": False, "act_layer": "gelu_tanh"}
CLIP = {"pre_norm": True, "norm_eps": 1e-5, "act_layer": "quick_gelu"}

NETWORKS = [
    ("hf_vit", "ViTForImageClassification", {"norm_eps": 1e-12, "img_size": (32, 48)}),
    ("hf_vit", "ViTModel", {"num_classes": 0, "qkv_bias": False}),
    ("hf_deit", "DeiTForImageClassification", {"reg_tokens": 1}),
    ("hf_deit", "DeiTModel", {"reg_tokens": 1, "num_classes": 0, "no_embed_class": True}),
    ("hf_deit_distilled", "DeiTForImageClassificationWithTeacher", {"distilled": True}),
    ("hf_ijepa", "IJepaForImageClassification", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("hf_ijepa", "IJepaModel", {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}),
    ("hf_dinov2", "Dinov2Model", DINO | {"patch_size": (8, 4)}),
    ("hf_dinov2", "Dinov2Model", DINO | GATED),
    ("hf_dinov2_with_registers", "Dinov2WithRegistersModel", DINO | {"reg_tokens": 3, "no_embed_class": True}),
    ("hf_dinov2", "Dinov2ForImageClassification", {"init_values": 0.1}),
    ("hf_dinov2_with_registers", "Dinov2WithRegistersModel", DINO | GATED | {"reg_tokens": 3}),
    ("hf_dinov2_with_registers", "Dinov2WithRegistersForImageClassification", GATED | {"reg_tokens": 3}),
    ("hf_clip", "CLIPVisionModel", CLIP | {"num_classes": 0, "init_values": 0.1}),
    ("hf_clip", "CLIPVisionModelWithProjection", CLIP | {"mlp_ratio": 1.5}),
    ("hf_clip_classifier", "CLIPForImageClassification", CLIP | {"global_pool": "avg", "final_norm": False}),
    ("hf_siglip", "SiglipVisionModel", SIGLIP | {"num_classes": 0, "global_pool": "map"}),
    ("hf_siglip", "SiglipVisionModel", SIGLIP | {"num_classes": 0, "global_pool": ""}),
    ("hf_siglip_classifier", "SiglipForImageClassification", SIGLIP | {"global_pool": "avg", "fc_norm": False}),
]


def network(**options):
    """Return a random tiny network of ours."""
    return randomize(VisionTransformer(ViTConfig.from_mapping(TINY | options)))


def theirs(model, images, *, pools):
    """Run a model of transformers as far as ours goes: to logits, a projection, the pooled token or all tokens."""
    result = model(images)
    names = ("logits", "image_embeds", "pooler_output" if pools else "last_hidden_state")
    return next(result[name] for name in names if result.get(name) is not None)


@pytest.mark.parametrize(("target", "architecture", "options"), NETWORKS)
def test_folder__opens_in_transformers(tmp_path, target, architecture, options):
    """The class that the folder names takes every tensor and computes what ours does; we read the same network back."""
    ours = network(**options)
    if architecture == "CLIPVisionModelWithProjection":
        torch.nn.init.zeros_(ours.head.bias)  # a projection has none
    state = ours.state_dict()
    save_file(state, tmp_path / "ours.safetensors")
    report = convert_checkpoint(tmp_path / "ours.safetensors", tmp_path / "new", to=target, config=ours.config)
    assert report.verification.by == ("vit_finetune", "transformers")

    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    model, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "new", output_loading_info=True, attn_implementation="sdpa"
    )
    # A pooler, which no classifier uses and we don't have, starts new as it does for every classifier's weights.
    assert set(info["missing_keys"]) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert_known(config, model.config)

    images = torch.randn(2, 3, *ours.config.img_size, dtype=torch.float64)
    ours = ours.double()
    with torch.no_grad():
        pools = architecture == "CLIPVisionModel" or "attn_pool.latent" in state
        found = theirs(model.double().eval(), images, pools=pools)
        expected = ours(images) if found.ndim == 2 else ours.forward_features(images)
    # Folding LayerScale, or adding a position to a token, rounds once in float32; all else is exact.
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    again = convert_checkpoint(tmp_path / "new", tmp_path / "again", to="timm", verify=False).config
    told = {name for name in ours.config.to_mapping() if name not in {"init_values", "no_embed_class", "qkv_bias"}}
    assert {name: again[name] for name in told} == {name: ours.config.to_mapping()[name] for name in told}


@pytest.mark.parametrize(
    ("name", "class_name", "config_name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", "DeiTForImageClassificationWithTeacher", "DeiTConfig",
         {"num_labels": 5, "layer_norm_eps": 1e-6}),
        ("vit_small_patch14_reg4_dinov2", "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
        ("vit_base_patch16_clip_quickgelu_224", "CLIPVisionModelWithProjection", "CLIPVisionConfig",
         {"projection_dim": 5}),
        ("vit_base_patch32_siglip_256", "SiglipVisionModel", "SiglipVisionConfig", {}),
    ],
)  # fmt: skip
def test_registered_name__takes_the_library_s_folder(tmp_path, name, class_name, config_name, options):
    """A network made by its timm name loads what transformers saved, and returns what transformers does."""
    gated = {"mlp_ratio": 4} if "Dinov2" in class_name else {"intermediate_size": 128}
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | gated
    reference, folder = saved(class_name, config_name, **sizes, **options)(tmp_path)
    classes = 5 if options else 0
    ours = create_model(name, **TINY | {"num_classes": classes}).eval()
    load_pretrained(ours, folder, head="keep" if classes else "drop")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = ours(images)
        expected = theirs(reference, images, pools=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
