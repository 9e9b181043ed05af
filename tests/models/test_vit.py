"""The network as a citizen of torch: compile, export, meta device, checkpointing, groups, refusals."""

from __future__ import annotations

import pytest
import timm.optim
import torch
from models_helpers import DIVERSE, images, small, small_fields
from torch import nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import create_model

COMPILED = (  # seconds each, so one for each way through the forward pass
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch16_18x2_224",
    "vit_dpwee_patch16_reg1_gap_256",
    "test_vit3",
)
NOISY = {"drop_path_rate": 0.5, "patch_drop_rate": 0.25}


@pytest.mark.parametrize("name", COMPILED)
def test_compile__fullgraph_equals_eager(name):
    """One graph for forward and backward, in training with per-sample noise; numbers and gradients are eager's."""
    torch._dynamo.reset()
    model = small(name, **NOISY).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, seeds = images(model.config, batch=3), torch.tensor([5, 6, 7])
    want = model(x, sample_seeds=seeds)
    want.sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    got = compiled(x, sample_seeds=seeds)
    got.sum().backward()
    torch.testing.assert_close(got, want)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_compile__without_seeds_and_with_dynamic_size():
    """The other two paths of the embedding are one graph too."""
    torch._dynamo.reset()
    model = small("test_vit2", **NOISY).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert compiled(images(model.config, size=(32, 80))).shape == (2, 5)


@pytest.mark.parametrize("name", COMPILED)
def test_export__equals_eager(name):
    """`torch.export` gives the same logits for any batch size."""
    model = small(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(model.config),), dynamic_shapes={"x": {0: batch}})
    x = images(model.config, batch=3, seed=2)
    torch.testing.assert_close(program.module()(x), model(x))


def test_export__takes_sample_seeds():
    """An exported training network draws the same noise from the same seeds."""
    model = small("vit_tiny_patch16_224", **NOISY).train()
    x, seeds = images(model.config), torch.tensor([1, 2])
    program = torch.export.export(model, (x,), {"sample_seeds": seeds})
    other = torch.tensor([30, 40])
    torch.testing.assert_close(program.module()(x, sample_seeds=other), model(x, sample_seeds=other))


@pytest.mark.parametrize("name", DIVERSE)
def test_grad_checkpointing__same_gradients(name):
    """Recomputing blocks changes neither outputs nor gradients, with DropPath and element dropout on."""
    model = small(name, **NOISY, proj_drop_rate=0.2).train()
    x, seeds, results = images(model.config), torch.tensor([1, 2]), []
    for enable in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        logits = model(x, sample_seeds=seeds)
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", DIVERSE)
def test_meta__assigning_a_state_dict_makes_a_model(name):
    """A network built on the meta device holds no memory and works once a state dict is assigned."""
    reference = small(name)
    with torch.device("meta"):
        model = create_model(name, **small_fields(name)).eval()
    assert all(parameter.is_meta for parameter in model.parameters()) and not list(model.buffers())
    model.load_state_dict(reference.state_dict(), strict=True, assign=True)
    x = images(model.config)
    assert torch.equal(model(x), reference(x))


def test_weight_init__skip_draws_nothing():
    """Building with `weight_init="skip"` leaves torch's generator alone, and the parameters real."""
    before = torch.random.get_rng_state()
    model = create_model("vit_base_patch16_224", depth=2, weight_init="skip")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("name", [*DIVERSE, "vit_base_patch16_siglip_gap_224", "vit_huge_patch16_radio_v3"])
def test_groups__equal_timm(name):
    """timm's layer-decay helper, given our model, forms the groups that it forms for its own, and depths agree."""
    model = create_model(name, **small_fields(name, depth=3))
    theirs = timm.create_model(name, **small_fields(name, depth=3))
    groups = [_layer_decay_groups(network) for network in (model, theirs)]
    assert groups[0] == groups[1]
    deepest = model.num_depths - 1
    assert {key: 0.5 ** (deepest - model.parameter_depth(key)) for key in groups[0]} == {
        key: scale for key, (scale, _) in groups[0].items()
    }


def _layer_decay_groups(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return each parameter's (lr scale, weight decay) as timm's helper sets them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


def test_parameter_depth__written_out():
    """The depths of a network with two blocks, by hand."""
    model = small("deit_tiny_distilled_patch16_224")
    depths = {name: model.parameter_depth(name) for name, _ in model.named_parameters()}
    embedding = {"cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, depth in depths.items() if depth == 0} == embedding
    assert all(depth == 1 for name, depth in depths.items() if name.startswith("blocks.0."))
    assert {name for name, depth in depths.items() if depth == 2 and "blocks.1." not in name} == {
        "norm.weight",
        "norm.bias",
    }
    heads = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert {name for name, depth in depths.items() if depth == 3} == heads
    with pytest.raises(RequestError, match=r"'encoder\.weight'"):
        model.parameter_depth("encoder.weight")


def test_distilled__mean_of_both_heads_in_training_too():
    """A distilled model gives one tensor in train and eval: the mean of its heads."""
    model = small("deit_tiny_distilled_patch16_224")
    x = images(model.config)
    tokens = model.forward_features(x)
    want = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(model(x), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.train()(x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "dynamic", "message"),
    [
        ((2, 3, 64, 64), False, "64 x 64 pixels, the model takes 48 x 64"),
        ((2, 1, 48, 64), False, r"\[batch, 3, height, width\]"),
        ((3, 48, 64), False, r"shape \(3, 48, 64\)"),
        ((2, 3, 50, 64), True, r"patches of \(16, 16\) do not divide"),
    ],
)
def test_forward__refuses_other_shapes(shape, dynamic, message):
    """An image that the model can't take is refused in a sentence that says what it takes."""
    model = small("vit_tiny_patch16_224", dynamic_img_size=dynamic)
    with pytest.raises(RequestError, match=message):
        model(torch.zeros(shape, dtype=torch.float64))


def test_forward__refuses_seeds_of_another_batch():
    """One integer per image, neither fewer nor more."""
    model = small("vit_tiny_patch16_224")
    for seeds in (torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0])):
        with pytest.raises(RequestError, match="one int64 per image, 2 of them"):
            model(images(model.config), sample_seeds=seeds)


@pytest.mark.parametrize("n", [0, 3, [2], [-3]])
def test_get_intermediate_layers__refuses_missing_blocks(n):
    """A block that isn't there is an error, not an empty list."""
    model = small("vit_tiny_patch16_224")
    with pytest.raises(RequestError, match="2 blocks"):
        model.get_intermediate_layers(images(model.config), n)
