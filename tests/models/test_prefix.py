"""A network in two halves computes what the whole does, and the last block only what is looked at."""

from __future__ import annotations

import pytest
import timm
import torch
from models_helpers import randomize, small_fields

from vit_finetune.models import SecondHalf, boundary_of, create_model, forward_prefix, prefix_tensors
from vit_finetune.tuning import apply_tuning

# A class token, registers with LayerScale, mean pooling, attention pooling, rotary and relative positions.
NAMES = (
    *("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_so150m_patch16_reg4_gap_256"),
    *("vit_base_patch16_siglip_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"),
)


def images_of(model, count=3):
    generator = torch.Generator().manual_seed(1)
    shape = (count, model.config.in_chans, *model.config.img_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def small(name, **overrides):
    fields = {"depth": 2, "num_classes": 5, "img_size": (48, 64) if "14" not in name else (42, 56)}
    torch.manual_seed(0)
    return randomize(create_model(name, **(fields | overrides)).double())


@pytest.mark.parametrize("name", NAMES)
def test_prefix__two_halves_are_the_whole(name):
    """At every boundary the second half of what the first gives is the whole network's output."""
    model = small(name).eval()
    x = images_of(model)
    want = model(x)
    for boundary in (1, 2, 3):
        rest = SecondHalf(model, boundary)(forward_prefix(model, x, boundary))
        torch.testing.assert_close(rest, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", ["last_n", "linear_probe"])
def test_prefix__gradients_are_those_of_the_whole(mode):
    """In training, with DropPath, what trains gets the same gradients from the second half alone."""
    model = small("vit_tiny_patch16_224", drop_path_rate=0.5, depth=3)
    tuned = apply_tuning(model, mode, num_blocks=2 if mode == "last_n" else None)
    model.train()
    assert model.boundary == tuned.boundary == (1 if mode == "last_n" else 4)
    x, seeds = images_of(model, 6), torch.arange(6)
    gradients = []
    for given in (x, forward_prefix(model, x, tuned.boundary)):
        model.zero_grad()
        model(given, sample_seeds=seeds).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-11)


def test_prefix__boundary_lies_before_everything_that_trains():
    """A boundary is as late as what trains allows: patterns move it, the embedding takes it away."""
    model = small("vit_tiny_patch16_224", depth=4)
    cases = {
        ("head.weight",): 5,
        ("head.weight", "fc_norm.weight"): 4,
        ("norm.weight", "head.weight"): 3,
        ("blocks.2.attn.qkv.weight", "head.weight"): 2,
        ("blocks.0.norm1.weight",): 0,
        ("pos_embed",): 0,
    }
    for trained, boundary in cases.items():
        assert boundary_of(model, trained) == boundary, trained


def test_prefix__tensors_are_what_the_first_half_depends_on():
    """Changing any tensor that is not named leaves the first half as it was; changing the named ones changes it."""
    model = small("vit_tiny_patch16_224", depth=3).eval()
    x = images_of(model)
    for boundary in (1, 2, 4):
        before = forward_prefix(model, x, boundary)
        named = dict(prefix_tensors(model, boundary))
        for name, tensor in model.state_dict().items():
            kept = tensor.clone()
            tensor.add_(0.5 * torch.randn_like(tensor))
            assert torch.equal(forward_prefix(model, x, boundary), before) == (name not in named), (boundary, name)
            tensor.copy_(kept)


def test_prefix__frozen_blocks_record_nothing():
    """No tensor before the boundary is part of the graph, and the pictures get no gradient."""
    model = small("vit_tiny_patch16_224", depth=3).train()
    apply_tuning(model, "last_n", num_blocks=1)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[-1].requires_grad))
    x = images_of(model)
    model(x).sum().backward()
    assert seen == [False, False, True]
    assert x.grad is None


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"]
)
def test_last_block__gradients_are_timms(name):
    """The last block makes only what is pooled; logits and gradients are those of timm's network, which makes all."""
    fields = small_fields(name)
    ours, theirs = create_model(name, **fields).double(), timm.create_model(name, **fields).double()
    theirs.load_state_dict(randomize(ours).state_dict())
    x = images_of(ours)
    mine, other = ours.eval()(x), theirs.eval()(x)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)
    mine.square().sum().backward()
    other.square().sum().backward()
    wanted = dict(theirs.named_parameters())
    for name_, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name_].grad, rtol=1e-9, atol=1e-10)


def test_last_block__makes_fewer_tokens():
    """A class token's network makes one token in its last block; mean pooling makes all."""
    for name, count in (("vit_tiny_patch16_224", 1), ("vit_so150m_patch16_reg4_gap_256", None)):
        model = small(name).eval()
        shapes = []
        model.blocks[-1].mlp.register_forward_hook(lambda *call, shapes=shapes: shapes.append(call[-1].shape[1]))
        model(images_of(model))
        assert shapes == [count or model.config.num_tokens]
