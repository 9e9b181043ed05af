"""ViTConfig: JSON and back, read off a state dict, and refusing what can't be built."""

from __future__ import annotations

import json

import pytest
import torch
from models_helpers import images, plain_names, small, small_fields

from vit_finetune.common.errors import RequestError
from vit_finetune.models import VisionTransformer, ViTConfig, create_model, list_models, variant_config

# What no weights tell; the rest of a registered config has to be found.
UNTOLD = ("num_heads", "norm_eps", "act_layer", "global_pool", "img_size", "pool_include_prefix", "block_fn")


def test_config__survives_json():
    """Every registered config comes back equal from JSON, and is hashable."""
    for name in list_models():
        config = variant_config(name)
        assert type(config).from_mapping(json.loads(json.dumps(config.to_mapping()))) == config
        assert hash(config) == hash(variant_config(name))


def test_config__sizes_may_be_numbers_or_lists():
    """A side, a list and a tuple mean the same; the grid is (height, width)."""
    assert ViTConfig.from_mapping({"img_size": 64, "patch_size": [8, 16]}).grid_size == (8, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 100, "num_heads": 3}, "100 is not divisible by 3"),
        ({"embed_dim": 60, "num_heads": 4, "attn_layer": "diff"}, "not divisible by 8, its number of query heads"),
        ({"class_token": False}, "needs class_token=True"),
        ({"distilled": True, "global_pool": "avg"}, "distilled=True needs"),
        ({"distilled": True, "no_embed_class": True}, "distilled=True needs"),
        ({"act_layer": "gleu"}, "did you mean 'gelu'"),
        ({"depth": 0}, "depth=0 is not above 0"),
        ({"depth": "12"}, "depth='12' is not of type int"),
        ({"qkv_bias": 1}, "qkv_bias=1 is not of type bool"),
        ({"drop_path_rate": 1.0}, r"not in \[0, 1\)"),
        ({"init_values": 0.0}, "None leaves LayerScale out"),
        ({"num_classes": -1}, "is below 0"),
        ({"img_size": (224,)}, r"is not \(height, width\)"),
        ({"img_size": 8}, "larger than img_size"),
        ({"patch_size": 0}, "below 1 pixel"),
        ({"mlp_layer": "swiglu_packed", "mlp_ratio": 2.0, "embed_dim": 7, "num_heads": 7, "depth": 1}, None),
        ({"mlp_layer": "swiglu_packed", "mlp_ratio": 3.0, "embed_dim": 7, "num_heads": 7}, "even hidden width, got 21"),
        ({"block_fn": "parallel_scaling", "attn_layer": "diff"}, "has its own attention and MLP"),
        ({"dept": 3}, "did you mean 'depth'"),
    ],
)
def test_config__refuses(fields, message):
    """A value or a contradiction that no network can be built from is refused in words; the rest is built."""
    if message is None:
        ViTConfig.from_mapping(fields)
        return
    with pytest.raises(RequestError, match=message):
        ViTConfig.from_mapping(fields)


def test_config__names_all_problems_at_once():
    """Two wrong fields are named in one message."""
    with pytest.raises(RequestError, match=r"depth=0.*drop_rate=2"):
        ViTConfig(depth=0, drop_rate=2.0)


def distinct_names() -> list[str]:
    """Return one name for each config that the variants have when built small."""
    return list({variant_config(name).updated(small_fields(name, depth=1)): name for name in plain_names()}.values())


@pytest.mark.parametrize("name", distinct_names())
@torch.no_grad()
def test_from_state_dict__finds_what_weights_tell(name):
    """The config read off each kind of weights, completed by what weights don't tell, builds the same function."""
    model = small(name, depth=1)
    known = {field: getattr(model.config, field) for field in UNTOLD}
    config = ViTConfig.from_state_dict(model.state_dict(), known=known)
    rebuilt = VisionTransformer(config).double().eval()
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(rebuilt(images(config)), model(images(config)), atol=0, rtol=0)


def test_from_state_dict__square_grids_are_found():
    """A square image size is read off the number of positions, with and without positions of prefix tokens."""
    told = {"num_heads": 6, "norm_eps": 1e-6, "act_layer": "gelu", "global_pool": "token"}
    for name in ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"):
        with torch.device("meta"):
            weights = create_model(name, depth=1).state_dict()
        config = ViTConfig.from_state_dict(weights, known=told)
        assert config.to_mapping() == {**variant_config(name).to_mapping(), "depth": 1}


def test_from_state_dict__asks_for_what_weights_do_not_tell():
    """Missing fields are asked for by name, a wrong size and a foreign layout are refused."""
    weights = create_model("vit_tiny_patch16_224", **small_fields("vit_tiny_patch16_224")).state_dict()
    with pytest.raises(RequestError, match="do not tell num_heads, norm_eps, act_layer, global_pool, img_size"):
        ViTConfig.from_state_dict(weights)
    with pytest.raises(RequestError, match="13 rows"):
        ViTConfig.from_state_dict(weights, known={"img_size": 224})
    with pytest.raises(RequestError, match="not in timm's ViT layout"):
        ViTConfig.from_state_dict({"conv_proj.weight": torch.zeros(1)})


def test_from_state_dict__a_square_number_of_rows_may_include_the_class_token():
    """Nine rows are 3 x 3 patches, or, where it is known that the class token has a position, no square grid: asked."""
    fields = {"img_size": (32, 16), "patch_size": (8, 8), "embed_dim": 12, "depth": 1, "num_heads": 2}
    weights = VisionTransformer(ViTConfig.from_mapping(fields)).state_dict()
    known = {"num_heads": 2, "norm_eps": 1e-6, "act_layer": "gelu", "global_pool": "token"}
    assert ViTConfig.from_state_dict(weights, known=known).no_embed_class
    with pytest.raises(RequestError, match="do not tell img_size"):
        ViTConfig.from_state_dict(weights, known={**known, "no_embed_class": False})
    found = ViTConfig.from_state_dict(weights, known={**known, "img_size": (32, 16), "patch_size": 8})
    assert found.grid_size == (4, 2)
