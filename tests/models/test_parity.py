"""Our numbers are timm's: every plain ViT, token by token."""

from __future__ import annotations

import pytest
import timm
import torch
from models_helpers import DIFF_NAMES, DIVERSE, images, plain_names, small_fields, small_pair

from vit_finetune.models import create_model, list_models, variant_config

NAMES = plain_names()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_variants__cover_what_timm_registers(capsys):
    """Every plain ViT that the installed timm registers can be built; the count is printed."""
    known = set(list_models()) & set(NAMES)
    with capsys.disabled():
        print(f"\nplain ViTs of timm {timm.__version__} that can be built: {len(known)} of {len(NAMES)}")
    assert known == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward__equals_timm(name):
    """Features and logits agree in float64 and float32, in eval and train mode; state dicts fit both ways."""
    tolerance = 1e-6 if name in DIFF_NAMES else 1e-10
    ours, theirs = small_pair(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(ours.config)
    close(ours.forward_features(x), theirs.forward_features(x), tolerance)
    close(ours(x), theirs(x), tolerance)
    close(ours.train()(x), theirs.train()(x), tolerance)
    ours, theirs, x = ours.float().eval(), theirs.float().eval(), x.float()
    close(ours.forward_features(x), theirs.forward_features(x), 1e-5)
    close(ours(x), theirs(x), 1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward__other_sizes_equal_timm(name):
    """Built square and dynamic, a model gives timm's numbers at its own and at another, non-square size."""
    tolerance = 1e-6 if name in DIFF_NAMES else 1e-10
    patch = variant_config(name).patch_size[0]
    ours, theirs = small_pair(name, img_size=3 * patch, dynamic_img_size=True, depth=1)
    for size in ((3 * patch, 3 * patch), (2 * patch, 4 * patch)):
        x = images(ours.config, size=size)
        close(ours(x), theirs(x), tolerance)


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_forward__headless_and_one_channel_equal_timm(name):
    """`num_classes=0` gives timm's features, and `in_chans` other than 3 works."""
    ours, theirs = small_pair(name, num_classes=0, in_chans=1)
    x = images(ours.config)
    close(ours(x), theirs(x), 1e-6 if name in DIFF_NAMES else 1e-10)
    close(ours.forward_head(ours.forward_features(x), pre_logits=True), ours(x), 1e-12)


@torch.no_grad()
def test_forward__without_pooling_equals_timm():
    """`global_pool=""` runs the head on every token."""
    ours, theirs = small_pair("vit_tiny_patch16_224", global_pool="")
    x = images(ours.config)
    assert ours(x).shape == (2, 13, 5)
    close(ours(x), theirs(x), 1e-10)


@pytest.mark.parametrize("name", DIVERSE)
@torch.no_grad()
def test_get_intermediate_layers__equals_timm(name):
    """The outputs of chosen blocks are timm's, as tokens and as pictures, with prefix tokens and norm."""
    ours, theirs = small_pair(name, depth=3)
    x = images(ours.config)
    for n, reshape, norm in ((2, False, False), ((0, -1), True, True)):
        got = ours.get_intermediate_layers(x, n, reshape=reshape, return_prefix_tokens=True, norm=norm)
        want = theirs.get_intermediate_layers(x, n, reshape=reshape, return_prefix_tokens=True, norm=norm)
        for (patches, prefix), expected in zip(got, want, strict=True):
            expected_patches, expected_prefix = expected if isinstance(expected, tuple) else (expected, None)
            close(patches, expected_patches, 1e-6 if name in DIFF_NAMES else 1e-10)
            if expected_prefix is not None:
                close(prefix, expected_prefix, 1e-6 if name in DIFF_NAMES else 1e-10)


@pytest.mark.parametrize("scheme", ["", "jax"])
@pytest.mark.parametrize("name", DIVERSE)
def test_init__distribution_equals_timm(name, scheme):
    """Each parameter starts with timm's mean and spread (exactly, where timm's is constant)."""
    fields = small_fields(name, embed_dim=16 * variant_config(name).num_heads, depth=1, weight_init=scheme)
    torch.manual_seed(0)
    ours, theirs = create_model(name, **fields), timm.create_model(name, **fields)
    for key, want in theirs.state_dict().items():
        got = ours.state_dict()[key]
        if want.std(correction=0) < 1e-12:
            assert torch.equal(got, want), key
        elif want.numel() >= 64:
            error = want.std() / want.numel() ** 0.5
            assert abs(got.mean() - want.mean()) < 8 * error, key
            assert abs(got.std() / want.std() - 1) < 8 / want.numel() ** 0.5, key
