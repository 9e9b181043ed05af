"""Features off a backbone, and readouts on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.models import (
    AttentiveReadout,
    FeatureLayout,
    LinearReadout,
    ReadoutModel,
    attention_maps,
    build_readout,
    create_model,
    read_features,
)
from vit_finetune.models.features import grid_average

IMAGES = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(0))


def tiny(**overrides: Any) -> Any:
    torch.manual_seed(0)
    fields = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": (80, 64), "num_classes": 0}
    return create_model("vit_tiny_patch16_224", **(fields | overrides)).eval()


@pytest.mark.parametrize(("size", "cells"), [(7, 7), (16, 7), (5, 3), (6, 2), (4, 1)])
def test_grid_average__is_torchs_adaptive_pooling(size: int, cells: int) -> None:
    """The matrix averages the same neighbours as adaptive_avg_pool1d."""
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ grid_average(size, cells).T, functional.adaptive_avg_pool1d(x, cells))


def test_read_features__are_the_networks_own() -> None:
    """Embedding is what the head would see, cls and avg are of normed intermediate tokens, the others of bare ones."""
    model = tiny()
    features = read_features(model, IMAGES, FeatureLayout((0, 2), 3))
    with torch.no_grad():
        torch.testing.assert_close(
            features["embedding"], model.forward_head(model.forward_features(IMAGES), pre_logits=True)
        )
        layers = model.get_intermediate_layers(IMAGES, [0, 2], return_prefix_tokens=True, norm=True)
        bare = model.get_intermediate_layers(IMAGES, [0, 2], reshape=True)
    for place, (patches, prefix) in enumerate(layers):
        torch.testing.assert_close(features["cls"][:, place], prefix[:, 0])
        torch.testing.assert_close(features["avg"][:, place], patches.mean(dim=1))
        normed = functional.layer_norm(bare[place].permute(0, 2, 3, 1), (48,), eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(features["max"][:, place], functional.adaptive_max_pool2d(normed, 1).flatten(1))
        torch.testing.assert_close(features["min"][:, place], -functional.adaptive_max_pool2d(-normed, 1).flatten(1))
        pooled = functional.adaptive_avg_pool2d(normed, 3).flatten(2).transpose(1, 2)
        torch.testing.assert_close(features["grid"][:, place], pooled, atol=1e-5, rtol=1e-5)
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == FeatureLayout((0, 2), 3).shapes(model)


@pytest.mark.parametrize(
    "overrides",
    [
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2, "no_embed_class": True},
        {"global_pool": "map"},
    ],
)
def test_read_features__of_every_pooling(overrides: dict[str, Any]) -> None:
    """Networks that pool otherwise, or have no class token, give the shapes that the layout says."""
    model = tiny(**overrides)
    layout = FeatureLayout((1,), 7)
    features = read_features(model, IMAGES, layout)
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == layout.shapes(model)
    with torch.no_grad():
        torch.testing.assert_close(features["embedding"], model(IMAGES))


def test_readout_model__is_a_backbone() -> None:
    """Logits are the readout's of the features; tokens, layers and attention maps are the backbone's."""
    model = tiny()
    readout = LinearReadout((("avg", 1), ("embedding", -1)), num_features=96, num_classes=4)
    whole = ReadoutModel(model, readout, layout=FeatureLayout((1, 2), 7), num_classes=4).eval()
    with torch.no_grad():
        features = read_features(model, IMAGES, FeatureLayout((1, 2), 7))
        expected = readout(torch.cat([features["avg"][:, 0], features["embedding"]], dim=1))
        torch.testing.assert_close(whole(IMAGES), expected)
        torch.testing.assert_close(whole.forward_features(IMAGES), model.forward_features(IMAGES))
        assert len(attention_maps(whole, IMAGES)) == 3
    assert whole.num_classes == whole.config.num_classes == 4


def test_build_readout__settings_go_round() -> None:
    """A readout built from another's settings takes its tensors; damaged settings are refused."""
    readout = AttentiveReadout((("grid", 2),), dim=48, num_queries=3, num_classes=4)
    twin = build_readout(readout.settings())
    twin.load_state_dict(readout.state_dict())
    with pytest.raises(RequestError, match="none of linear, knn, attentive"):
        build_readout({"name": "oracle"})
    with pytest.raises(RequestError, match="damaged"):
        build_readout({"name": "linear", "inputs": []})
    with pytest.raises(RequestError, match="5 queries do not share out a width of 48"):
        AttentiveReadout((("grid", 2),), dim=48, num_queries=5, num_classes=4)
