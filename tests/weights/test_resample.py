"""Every resampling against an independent oracle: timm or scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from timm.layers import resample_abs_pos_embed
from timm.layers import resample_patch_embed as timm_resample_patch_embed
from timm.models import adapt_input_conv

from vit_finetune.common.errors import RequestError
from vit_finetune.weights.resample import POS_EMBED_METHODS, adapt_in_chans, resample_patch_embed, resample_pos_embed

GRIDS = [
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((37, 37), (16, 16)),
    ((4, 5), (7, 3)),
    ((6, 6), (4, 9)),  # the same number of patches on another grid
    ((3, 4), (4, 3)),
    ((1, 8), (2, 4)),
]


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resample_pos_embed__bicubic_is_timms(old, new, num_prefix):
    """The default equals timm's antialiased bicubic bitwise, prefix rows untouched."""
    table = torch.randn(1, num_prefix + old[0] * old[1], 12)
    ours = resample_pos_embed(table, old, new_grid=new, num_prefix=num_prefix)
    assert torch.equal(ours, resample_abs_pos_embed(table, list(new), list(old), num_prefix))
    assert torch.equal(ours[:, :num_prefix], table[:, :num_prefix])


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resample_pos_embed__bilinear_is_scipys_zoom(old, new):
    """The paper's code zooms with scipy at order 1; ours agrees to float32 rounding."""
    table = torch.randn(1, 1 + old[0] * old[1], 6)
    ours = resample_pos_embed(table, old, new_grid=new, num_prefix=1, method="bilinear")
    image = table[0, 1:].numpy().astype(np.float64).reshape(*old, 6)
    zoomed = ndimage.zoom(image, (new[0] / old[0], new[1] / old[1], 1), order=1)
    np.testing.assert_allclose(ours[0, 1:].numpy(), zoomed.reshape(-1, 6), atol=3e-7)


def test_resample_pos_embed__same_grid_is_the_same_tensor():
    """Nothing is computed, and nothing rounded, where the grids agree."""
    table = torch.randn(1, 13, 4)
    assert resample_pos_embed(table, (3, 4), new_grid=(3, 4), num_prefix=1) is table


def test_resample_pos_embed__half_precision_goes_through_float32():
    """A float16 table keeps its type and equals timm's."""
    table = torch.randn(1, 17, 4).half()
    ours = resample_pos_embed(table, (4, 4), new_grid=(6, 5), num_prefix=1)
    assert ours.dtype == torch.float16
    assert torch.equal(ours, resample_abs_pos_embed(table, [6, 5], [4, 4], 1))


def test_resample_pos_embed__refuses_what_does_not_fit():
    """A wrong row count and an unknown method are each one clear error."""
    with pytest.raises(RequestError, match="1 prefix rows and a grid of 4x4"):
        resample_pos_embed(torch.randn(1, 16, 4), (4, 4), new_grid=(2, 2), num_prefix=1)
    with pytest.raises(RequestError, match="allowed: bicubic, bilinear"):
        resample_pos_embed(torch.randn(1, 16, 4), (4, 4), new_grid=(2, 2), num_prefix=0, method="cubic")


@pytest.mark.parametrize("size", [(14, 14), (32, 32), (8, 8), (12, 20), (16, 16)])
def test_resample_patch_embed__is_timms(size):
    """The pseudo-inverse resize equals timm's from 16 to 14, 32, 8 and a non-square patch."""
    weight = torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(
        resample_patch_embed(weight, size), timm_resample_patch_embed(weight, list(size)), atol=1e-5, rtol=1e-6
    )


def test_resample_patch_embed__enlarging_keeps_the_response():
    """An enlarged kernel on an enlarged patch gives the old token: FlexiViT's defining property."""
    weight, patch = torch.randn(8, 3, 8, 8), torch.randn(1, 3, 8, 8)
    larger = torch.nn.functional.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    old = torch.einsum("dchw,bchw->bd", weight, patch)
    new = torch.einsum("dchw,bchw->bd", resample_patch_embed(weight, (16, 16)), larger)
    torch.testing.assert_close(new, old, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_adapt_in_chans__is_timms(in_chans, dtype):
    """One, fewer, more channels: bitwise what timm does."""
    weight = torch.randn(8, 3, 4, 4).to(dtype)
    assert torch.equal(adapt_in_chans(weight, in_chans), adapt_input_conv(in_chans, weight.clone()))


def test_adapt_in_chans__refuses_several_from_another_number():
    """Only a colour kernel can be spread over several channels."""
    with pytest.raises(RequestError, match="takes 4 channels and the model 6"):
        adapt_in_chans(torch.randn(8, 4, 2, 2), 6)


@pytest.mark.parametrize("new", [(6, 6), (2, 3), (7, 5)])
def test_resample_pos_embed__hf_is_transformers(new):
    """The preset equals the numbers that transformers' ViT and DINOv2 compute at another picture size, bitwise."""
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    for model in (ViTModel(ViTConfig(**sizes)), Dinov2Model(Dinov2Config(**sizes))):
        table = torch.randn(1, 17, 8)
        model.embeddings.position_embeddings.data = table
        patches = torch.zeros(1, 1 + new[0] * new[1], 8)
        theirs = model.embeddings.interpolate_pos_encoding(patches, new[0] * 8, new[1] * 8)
        ours = resample_pos_embed(table, (4, 4), new_grid=new, num_prefix=1, method="hf")
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("new", [6, 2, 7])
def test_resample_pos_embed__torchvision_is_torchvisions(new):
    """The preset equals `interpolate_embeddings`, bitwise."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    table = torch.randn(1, 17, 8)
    theirs = interpolate_embeddings(8 * new, 8, {"encoder.pos_embedding": table})["encoder.pos_embedding"]
    ours = resample_pos_embed(table, (4, 4), new_grid=(new, new), num_prefix=1, method="torchvision")
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("new", [(6, 6), (2, 3), (7, 5), (24, 24)])
def test_resample_pos_embed__facebook_is_its_formula(new):
    """The preset is the line that DINO's and DINOv2's code has for it: a scale that is a tenth of a patch too large."""
    table = torch.randn(1, 17, 8)
    height, width = new[0] + 0.1, new[1] + 0.1
    image = torch.nn.functional.interpolate(
        table[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2),
        scale_factor=(height / math.sqrt(16), width / math.sqrt(16)),
        mode="bicubic",
    )
    assert image.shape[-2:] == new
    ours = resample_pos_embed(table, (4, 4), new_grid=new, num_prefix=1, method="facebook")
    assert torch.equal(ours[:, 1:], image.permute(0, 2, 3, 1).reshape(1, -1, 8))


def test_resample_pos_embed__presets_differ():
    """The five methods are five: how far apart they are is why the choice is the format's."""
    table = torch.nn.functional.interpolate(torch.randn(1, 4, 5, 5), size=(14, 14), mode="bicubic")
    table = table.flatten(2).transpose(1, 2)
    results = [
        resample_pos_embed(table, (14, 14), new_grid=(24, 24), num_prefix=0, method=m) for m in POS_EMBED_METHODS
    ]
    pairs = [(a - b).abs().mean() for i, a in enumerate(results) for b in results[:i]]
    assert min(pairs) > 1e-3 * table.abs().mean()
