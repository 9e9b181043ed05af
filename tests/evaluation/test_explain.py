"""Pictures of attention where the answer is known: hand-made maps, distances counted by hand, filters put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vit_finetune import create_model
from vit_finetune.common.errors import RequestError
from vit_finetune.evaluation.explain import (
    attention_distances,
    attention_rollout,
    colourise,
    overlay,
    patch_filters,
    position_similarity,
)


def looking_at(column: int, tokens: int, heads: int = 2) -> torch.Tensor:
    """Return a map in which every token looks at one token only."""
    made = torch.zeros(1, heads, tokens, tokens)
    made[..., column] = 1.0
    return made


def test_attention_rollout__all_attention_on_one_patch() -> None:
    """Where the class token looks at one patch, all that reaches it from patches is of that patch."""
    shares = attention_rollout([looking_at(3, 5)], num_prefix_tokens=1)
    assert shares.tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_attention_rollout__flows_through_layers_by_hand() -> None:
    """Patch 2 gives to patch 1, then 1 to the class token: of one quarter and one quarter, both have the same share."""
    first, second = torch.eye(3)[None, None], torch.eye(3)[None, None]
    first, second = first.clone(), second.clone()
    first[0, 0, 1] = torch.tensor([0.0, 0.0, 1.0])
    second[0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    # Token 1 is half itself and half token 2; half of it reaches the class token.
    assert attention_rollout([first, second], num_prefix_tokens=1).tolist() == [[0.5, 0.5]]
    assert attention_rollout([second, first], num_prefix_tokens=1).tolist() == [[1.0, 0.0]]


def test_attention_rollout__without_prefix_is_the_mean_over_patches() -> None:
    """A network without class token reads the mean of patches, so every patch counts as a reader."""
    shares = attention_rollout([looking_at(0, 4)], num_prefix_tokens=0)
    assert shares[0].tolist() == pytest.approx([0.5 + 0.125, 0.125, 0.125, 0.125])


def test_attention_rollout__refuses_maps_that_are_none() -> None:
    """No maps, maps that are not square, and a prefix that leaves no patch are named."""
    with pytest.raises(RequestError, match="at least one"):
        attention_rollout([], num_prefix_tokens=1)
    with pytest.raises(RequestError, match=r"\(1, 2, 3, 4\)"):
        attention_rollout([torch.zeros(1, 2, 3, 4)], num_prefix_tokens=1)
    with pytest.raises(RequestError, match="leave no patch"):
        attention_rollout([looking_at(0, 3)], num_prefix_tokens=3)


def test_attention_distances__counted_by_hand() -> None:
    """On a grid of 1 x 3, looking at oneself is 0 away, and everyone looking at the first patch (0 + 1 + 2) / 3."""
    itself = torch.eye(4)[None, None].repeat(1, 2, 1, 1)
    found = attention_distances([itself, looking_at(1, 4)], grid_size=(1, 3), num_prefix_tokens=1)
    assert found.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_position_similarity__of_known_embeddings() -> None:
    """Equal embeddings have similarity 1, orthogonal ones 0; a network with rotary positions is refused."""
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=48)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, 1:, 0] = torch.tensor([1.0, 2.0, 0.0, 0.0])
        model.pos_embed[0, 1:, 1] = torch.tensor([0.0, 0.0, 3.0, 3.0])
    found = position_similarity(model)
    assert found.shape == (2, 2, 2, 2)
    assert found[0, 0].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    rotary = create_model("vit_small_patch16_dinov3", img_size=32, depth=1, embed_dim=48, num_heads=3)
    with pytest.raises(RequestError, match="positions act inside attention"):
        position_similarity(rotary)


def test_patch_filters__the_strongest_direction_comes_first() -> None:
    """An embedding made of two orthogonal filters, one ten times stronger, gives these two, the strong one first."""
    model = create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=48)
    weight = torch.zeros(48, 3, 16, 16)
    weight[0, 0, 2, 3], weight[1, 1, 5, 7] = -1.0, 10.0
    model.patch_embed.proj.weight.data.copy_(weight)
    first, second = patch_filters(model, 2)
    assert (first[1, 5, 7], second[0, 2, 3]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert patch_filters(model, 500).shape == (48, 3, 16, 16)


def test_overlay__is_brightest_where_the_heat_is() -> None:
    """On a grey picture of another shape, the hottest cell is the brightest place, at the picture's size."""
    heat = np.zeros((4, 4))
    heat[1, 2] = 3.0
    drawn = overlay(Image.new("L", (80, 40), 128), heat)
    assert (drawn.mode, drawn.size) == ("RGB", (80, 40))
    bright = np.asarray(drawn.convert("L")).astype(int)
    row, column = np.unravel_index(bright.argmax(), bright.shape)
    assert (row // 10, column // 20) == (1, 2)
    with pytest.raises(RequestError, match="finite"):
        overlay(drawn, np.full((2, 2), np.nan))


def test_colourise__is_matplotlibs_inferno() -> None:
    """Colours follow matplotlib's own map within 20 of 256 steps, and brightness rises with the value."""
    matplotlib = pytest.importorskip("matplotlib")
    values = np.linspace(0, 1, 101)[None]
    expected = matplotlib.colormaps["inferno"](values)[..., :3] * 255
    found = colourise(values).astype(float)
    assert np.abs(found - expected).max() < 20
    brightness = found[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0).all()
