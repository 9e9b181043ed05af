"""What the tests of networks with rotary and with relative positions share: small pairs of timm's network and ours."""

from __future__ import annotations

from typing import Any

import timm
import timm.optim
import torch
from models_helpers import images, randomize
from torch import Tensor, nn

from vit_finetune.models import Backbone, RopeViTConfig, create_model, variant_config


def registered(module: str) -> list[str]:
    """Return every name that a module of the installed timm registers."""
    return sorted(timm.list_models(module=module))


def tiny_fields(name: str, **overrides: Any) -> dict[str, Any]:
    """Return overrides, understood by timm and by us, that make a variant small but leave its options."""
    config = variant_config(name)
    patch = config.patch_size[0]
    small: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 4, "num_classes": 5}
    if isinstance(config, RopeViTConfig) and config.num_kv_heads is not None:
        small["num_kv_heads"] = tuple((4, 2, 1)[: overrides.get("depth", 2)])
    return small | {"img_size": (3 * patch, 4 * patch)} | overrides


def tiny_pair(name: str, **overrides: Any) -> tuple[Backbone, nn.Module]:
    """Return our network and timm's, small, in float64 and eval mode, with the same random weights."""
    fields = tiny_fields(name, **overrides)
    theirs = randomize(timm.create_model(name, **fields)).double().eval()
    ours = create_model(name, **fields, weight_init="skip").double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def tiny(name: str, **overrides: Any) -> Backbone:
    """Return our network, small, with random weights that matter, in float64 and eval mode."""
    model = create_model(name, **tiny_fields(name, **overrides))
    randomize(model)
    return model.double().eval()


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    """Demand equality up to a tolerance, absolute and relative."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def check_parity(name: str) -> None:
    """Demand timm's tokens and logits on a picture that isn't square, and state dicts that fit both ways."""
    ours, theirs = tiny_pair(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(ours.config)
    close(ours.forward_features(x), theirs.forward_features(x))
    close(ours(x), theirs(x))
    ours, theirs, x = ours.float(), theirs.float(), x.float()
    close(ours.forward_features(x), theirs.forward_features(x), 1e-5)
    close(ours(x), theirs(x), 1e-5)


def layout(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and dtype of every tensor of a state dict."""
    return {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}


def full_size(name: str) -> tuple[Backbone, nn.Module]:
    """Return our network and timm's at full size, without memory."""
    with torch.device("meta"):
        return create_model(name, weight_init="skip"), timm.create_model(name)


def check_depths_and_groups(name: str) -> None:
    """Demand a depth for every parameter, and timm's learning-rate and weight-decay groups."""
    ours, theirs = tiny_pair(name, depth=3)
    depths = {key: ours.parameter_depth(key) for key, _ in ours.named_parameters()}
    assert set(depths.values()) == set(range(ours.num_depths)) == set(range(5))
    assert all(depth == int(key.split(".")[1]) + 1 for key, depth in depths.items() if key.startswith("blocks."))
    groups = [_layer_decay_groups(network) for network in (ours, theirs)]
    assert groups[0] == groups[1]
    assert {key: 0.5 ** (4 - depth) for key, depth in depths.items()} == {
        key: group[0] for key, group in groups[0].items()
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


def check_intermediate_layers(name: str) -> None:
    """Demand timm's outputs of chosen blocks, as tokens and as pictures, with prefix tokens and norm."""
    ours, theirs = tiny_pair(name, depth=3)
    x = images(ours.config)
    for n, reshape, norm in ((2, False, False), ([0, 2], True, True)):
        want = theirs.forward_intermediates(
            x,
            indices=n,
            return_prefix_tokens=ours.num_prefix_tokens > 0,  # timm stumbles over none
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )
        got = ours.get_intermediate_layers(x, n, reshape=reshape, return_prefix_tokens=True, norm=norm)
        for (patches, prefix), expected in zip(got, want, strict=True):
            expected_patches, *expected_prefix = expected if isinstance(expected, tuple) else (expected,)
            close(patches, expected_patches)
            assert prefix.shape[1] == ours.num_prefix_tokens
            for tokens in expected_prefix:
                close(prefix, tokens)


def check_compile_and_export(name: str, **noise: float) -> None:
    """Demand one graph for a training step, with eager's numbers and gradients, and an exportable network."""
    torch._dynamo.reset()
    model = tiny(name, **noise).train()
    x, seeds = images(model.config, batch=3), torch.tensor([5, 6, 7])
    results = []
    for network in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        logits = network(x, sample_seeds=seeds)
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(model.config),), dynamic_shapes={"x": {0: batch}})
    torch.testing.assert_close(program.module()(x), model(x))


def check_grad_checkpointing(name: str, **noise: float) -> None:
    """Demand that recomputing blocks changes neither outputs nor gradients, with all noise on."""
    model = tiny(name, **noise, proj_drop_rate=0.2).train()
    x, seeds, results = images(model.config), torch.tensor([1, 2]), []
    for enable in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        logits = model(x, sample_seeds=seeds)
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def check_init(name: str) -> None:
    """Demand timm's mean and spread of each parameter's start (exactly, where timm's is constant)."""
    fields = tiny_fields(name, embed_dim=64, depth=1)
    torch.manual_seed(0)
    ours, theirs = create_model(name, **fields).state_dict(), timm.create_model(name, **fields).state_dict()
    for key, want in theirs.items():
        got = ours[key]
        if want.std(correction=0) < 1e-12:
            assert torch.equal(got, want), key
        elif want.numel() >= 64:
            assert abs(got.mean() - want.mean()) < 8 * want.std() / want.numel() ** 0.5, key
            assert abs(got.std() / want.std() - 1) < 8 / want.numel() ** 0.5, key
