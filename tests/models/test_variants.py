"""The table of names: complete, the same size as timm's, and helpful when a name is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
from models_helpers import plain_names
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import NOT_PLAIN, count_parameters, create_model, list_models, variant_config

GOLDEN = json.loads((Path(__file__).parent / "golden_counts.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def without_initialising():
    """Meta tensors hold no values, but visiting each takes most of the time of building a model."""
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
    patches = [mock.patch.object(kind, "reset_parameters", lambda self: None) for kind in kinds]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


@pytest.mark.parametrize("name", plain_names())
def test_variant__full_size_layout_equals_timm(name):
    """At full size, names, shapes, dtypes and the number of parameters are timm's and the golden table's."""
    with torch.device("meta"):
        ours = create_model(name, weight_init="skip")
        theirs = timm.create_model(name, weight_init="skip")
    want = {key: (value.shape, value.dtype) for key, value in theirs.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in ours.state_dict().items()} == want
    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert count == GOLDEN[name] == count_parameters(ours.config) == sum(p.numel() for p in ours.parameters())
    assert (ours.num_prefix_tokens, ours.config.dynamic_img_size) == (theirs.num_prefix_tokens, theirs.dynamic_img_size)
    assert (ours.config.img_size, ours.config.grid_size) == (theirs.patch_embed.img_size, theirs.patch_embed.grid_size)


@pytest.mark.parametrize("name", plain_names())
def test_parameter_depth__covers_every_parameter(name):
    """Every parameter of every plain variant has a depth, from the embedding's 0 to the head's, each block its own."""
    config = variant_config(name)
    with torch.device("meta"):
        model = create_model(name, depth=3, num_classes=2, weight_init="skip")
    depths = {key: model.parameter_depth(key) for key, _ in model.named_parameters()}
    assert set(depths.values()) == set(range(model.num_depths)) == set(range(5))
    assert all(depth == int(key.split(".")[1]) + 1 for key, depth in depths.items() if key.startswith("blocks."))
    assert depths["patch_embed.proj.weight"] == 0 and depths["head.weight"] == 4
    assert config.norm_after_pool or not config.final_norm or depths["norm.weight"] == 3


def test_golden_counts__no_variant_without_one():
    """Every name has a golden number of parameters, and every golden number a name."""
    assert set(GOLDEN) == set(list_models())


def test_list_models__takes_a_pattern():
    """A pattern selects names, sorted; a pattern that fits nothing gives an empty list."""
    assert list_models("*small*dinov2") == ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"]
    assert list_models("nothing*") == []


def test_create_model__unknown_name_suggests():
    """A misspelt name is refused with the closest one, a name with a tag with the way to load it."""
    with pytest.raises(RequestError, match="did you mean 'vit_tiny_patch16_224'"):
        create_model("vit_tiny_patch16_242")
    with pytest.raises(RequestError, match=r"load 'timm:vit_tiny_patch16_224\.augreg_in21k'"):
        create_model("vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(RequestError, match=r"list_models\(\)"):
        create_model("resnet50")


def test_create_model__not_plain_says_why():
    """A relative that isn't built here is refused with its reason."""
    with pytest.raises(RequestError, match="hybrid"):
        create_model("vit_base_r50_s16_224")
    with pytest.raises(RequestError, match="relative instead of absolute"):
        create_model("vit_relpos_base_patch16_224")


def test_not_plain__lists_the_relatives_that_timm_registers():
    """The list of relatives holds each name of timm's neighbouring modules, and none that can be built."""
    relatives = ("vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam")
    registered = {name for module in (*relatives, "naflexvit") for name in timm.list_models(module=module)}
    assert registered <= set(NOT_PLAIN)
    assert not set(NOT_PLAIN) & set(list_models())


def test_create_model__overrides_are_config_fields():
    """Overrides reach the config, sizes may be numbers, and an unknown field is refused with the closest one."""
    model = create_model("vit_tiny_patch16_224", num_classes=7, img_size=64, in_chans=1, depth=1, drop_path_rate=0.1)
    assert (model.config.img_size, model.config.in_chans, model.config.depth, model.num_classes) == ((64, 64), 1, 1, 7)
    assert model.name == "vit_tiny_patch16_224"
    with pytest.raises(RequestError, match="did you mean 'drop_path_rate'"):
        create_model("vit_tiny_patch16_224", drop_path=0.1)
