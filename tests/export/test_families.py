"""The rooms above models/ take every family: model folders that timm opens, tuning modes, parameter groups."""

from __future__ import annotations

import pytest
import timm
import torch
from models_helpers import images
from placed_helpers import close, tiny

from vit_finetune.common.errors import RequestError
from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.export import export_model_folder
from vit_finetune.export.folder import timm_model_args
from vit_finetune.models import Backbone, create_model, replace_head, variant_config
from vit_finetune.training.optim import parameter_groups
from vit_finetune.tuning import apply_tuning

# One name per family and kind of prefix, MLP, angles and heads.
NAMES = (
    "vit_small_plus_patch16_dinov3_qkvb",
    "eva02_base_patch16_clip_224",
    "vit_base_patch16_rope_mixed_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_base_patch16_sapiens2",
    "beit_base_patch16_224",
)


def finished(name: str) -> Backbone:
    """Return a small network with a new head of three classes."""
    return replace_head(tiny(name), 3, init="trunc_normal").eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_export__timm_opens_the_folder(name, tmp_path):
    """timm builds the network from the folder alone, loads it strictly and gives the same logits."""
    model = replace_head(tiny(name, patch_drop_rate=0.25), 3, init="trunc_normal").eval().float()
    height, width = model.config.img_size
    spec = PreprocessSpec().with_size(height, width)
    folder = export_model_folder(model, tmp_path / "model", preprocess=spec, class_names=["a", "b", "c"])
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(model.config).float()
    close(model(x), theirs(x), 1e-5)


def test_export__refuses_what_json_cannot_say():
    """Another kind of norm, its epsilon, and a name of another family are refused by name."""
    config = variant_config("vit_small_patch16_dinov3")
    with pytest.raises(RequestError, match=r"norm_eps.*norm_layer"):
        timm_model_args(config.updated({"norm_layer": "rmsnorm", "norm_eps": 1e-6}), "vit_small_patch16_dinov3")
    with pytest.raises(RequestError, match=r"another family \(ViTConfig\) than this network \(RopeViTConfig\)"):
        timm_model_args(config, "vit_small_patch16_224")


@pytest.mark.parametrize("name", NAMES)
def test_tuning__modes_count_every_parameter(name):
    """A linear probe trains the head alone, last_n from a block on, and groups hold what trains, once."""
    model = finished(name)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert apply_tuning(model, "linear_probe").num_trained == 3 * 32 + 3
    last = apply_tuning(model, "last_n", num_blocks=1)
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert last.num_trained + last.num_frozen == total
    assert not any(key.startswith(("blocks.1.", "head.")) for key in frozen) and "cls_token" in frozen
    apply_tuning(model, "full")
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    names = [key for group in groups for key in group["names"]]
    assert sorted(names) == sorted(key for key, _ in model.named_parameters())
    spared = [key for group in groups if group["weight_decay"] == 0 for key in group["names"]]
    assert model.no_weight_decay() & set(names) <= set(spared)


def test_train__a_step_lowers_the_loss():
    """A few seeded steps with all noise on move every parameter of a DINOv3 and a BEiT, and lower the loss."""
    for name in ("vit_small_patch16_dinov3_qkvb", "beit_base_patch16_224"):
        torch.manual_seed(0)
        noise = {"drop_path_rate": 0.1}
        model = create_model(name, depth=2, embed_dim=32, num_heads=4, img_size=32, num_classes=2, **noise)
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05, layer_decay=1.0), lr=1e-2)
        x, labels, seeds = torch.randn(8, 3, 32, 32), torch.arange(8) % 2, torch.arange(8)
        losses = []
        for step in range(12):
            loss = torch.nn.functional.cross_entropy(model(x, sample_seeds=seeds + 8 * step), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] / 2
        assert all(not torch.equal(parameter, before[key]) for key, parameter in model.named_parameters())
