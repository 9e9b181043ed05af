"""The two options that timm's plain ViT has no slot for: heads of a width of their own, and a norm on raw patches."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from models_helpers import images, small
from torch.nn import functional

from vit_finetune.common.errors import RequestError
from vit_finetune.models import VisionTransformer, ViTConfig, attention_maps

NAME = "vit_tiny_patch16_224"  # three heads
WIDE = {"attn_head_dim": 5}
NORMED = {"patch_norm_in": True, "embed_norm": True, "norm_eps": 1e-5}


def test_attn_head_dim__attention_written_out():
    """Three heads of width 5 in a network of width 24 are the textbook's attention, and its maps are those used."""
    model = small(NAME, **WIDE)
    attention = model.blocks[0].attn
    assert attention.qkv.weight.shape == (45, 24)
    assert attention.proj.weight.shape == (24, 15)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    q, k, v = rearrange(attention.qkv(x), "b n (three nh hd) -> three b nh n hd", three=3, nh=3)
    weights = torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) / 5**0.5, dim=-1)
    expected = attention.proj(rearrange(weights @ v, "b nh n hd -> b n (nh hd)"))
    torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(attention.attention_map(x), weights, atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("more", [{}, {"qk_norm": True}, {"scale_attn_norm": True}, {"block_fn": "parallel_things"}])
def test_attn_head_dim__goes_with_the_other_options(more):
    """The maps have their usual shape and the network is found again from its weights."""
    model = small(NAME, **WIDE, **more)
    x = images(model.config)
    maps = attention_maps(model, x)
    assert {tuple(found.shape) for found in maps} == {(2, 3, 13, 13)}
    fields = ("num_heads", "norm_eps", "act_layer", "global_pool", "img_size")
    known = {field: getattr(model.config, field) for field in fields}
    config = ViTConfig.from_state_dict(model.state_dict(), known=known)
    assert config.attn_head_dim == 5
    again = VisionTransformer(config).double().eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again(x), model(x))


def test_attn_head_dim__may_leave_a_width_that_heads_do_not_divide():
    """Three heads of width 4 in a network of width 10 are built; without the option they are refused."""
    fields = {"img_size": 16, "depth": 1, "embed_dim": 10, "num_heads": 3}
    assert VisionTransformer(ViTConfig.from_mapping({**fields, "attn_head_dim": 4})).blocks[0].attn.head_dim == 4
    with pytest.raises(RequestError, match="10 is not divisible by 3"):
        ViTConfig.from_mapping(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_head_dim": 0}, "attn_head_dim=0 is not above 0"),
        ({"attn_head_dim": 8.0}, "attn_head_dim=8.0 is not of type int or None"),
        ({"attn_head_dim": 8, "attn_layer": "diff"}, "needs attn_layer='attention'"),
        ({"attn_head_dim": 8, "block_fn": "parallel_scaling"}, "needs attn_layer='attention' and a block_fn"),
        ({"attn_head_dim": 8, "embed_dim": 10, "num_heads": 3, "global_pool": "map"}, "10 is not divisible by 3"),
    ],
)
def test_attn_head_dim__refused(fields, message):
    """A width that means nothing, and blocks that share their projections, are refused in words."""
    with pytest.raises(RequestError, match=message):
        ViTConfig.from_mapping(fields)


def test_attn_head_dim__rows_that_heads_do_not_divide():
    """A wrong number of heads for the rows in the file is refused rather than rounded."""
    tensors = small(NAME, **WIDE).state_dict()
    known = {"num_heads": 4, "norm_eps": 1e-6, "act_layer": "gelu", "global_pool": "token", "img_size": (48, 64)}
    with pytest.raises(RequestError, match="num_heads=4 does not divide the 45 rows"):
        ViTConfig.from_state_dict(tensors, known=known)


@pytest.mark.parametrize("size", [(48, 64), (50, 70)])
def test_patch_norm_in__embedding_written_out(size):
    """Each patch is a vector of rows, columns, channels that is normalised, projected, and normalised again."""
    model = small(NAME, **NORMED, img_size=size)
    embed = model.patch_embed
    assert embed.norm_in.weight.shape == (16 * 16 * 3,)
    x = images(model.config)
    patches = rearrange(x[:, :, :48, :64], "b c (gh p) (gw q) -> b (gh gw) (p q c)", p=16, q=16)
    normed = functional.layer_norm(patches, (768,), embed.norm_in.weight, embed.norm_in.bias, 1e-5)
    weight = rearrange(embed.proj.weight, "d c p q -> d (p q c)")
    expected = functional.layer_norm(
        normed @ weight.T + embed.proj.bias, (24,), embed.norm.weight, embed.norm.bias, 1e-5
    )
    torch.testing.assert_close(embed(x), expected, atol=1e-12, rtol=0)


@torch.no_grad()
def test_patch_norm_in__is_read_off_the_weights():
    """The network is found again from its weights, at any size that patches divide, and has maps."""
    model = small(NAME, **NORMED, dynamic_img_size=True)
    known = {"num_heads": 3, "norm_eps": 1e-5, "act_layer": "gelu", "global_pool": "token", "img_size": (48, 64)}
    config = ViTConfig.from_state_dict(model.state_dict(), known=known)
    assert config.patch_norm_in
    assert config.embed_norm
    x = images(model.config, size=(32, 32))
    assert model(x).shape == (2, 5)
    assert attention_maps(model, x)[0].shape == (2, 3, 5, 5)


def test_both__compile_export_and_train():
    """One graph, an exportable program, and a gradient for every parameter."""
    model = small(NAME, **WIDE, **NORMED)
    x = images(model.config)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.parameter_depth("patch_embed.norm_in.weight") == 0
