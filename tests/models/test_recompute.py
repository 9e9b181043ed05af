"""Recomputing what is cheap: the same numbers as without, timm's gradients, no product twice, and nothing held on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from models_helpers import images, randomize, small, small_pair
from placed_helpers import tiny, tiny_pair
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit_finetune.common.errors import RequestError
from vit_finetune.models import Backbone
from vit_finetune.tuning import add_lora, apply_tuning

NOISY = {"drop_path_rate": 0.5, "patch_drop_rate": 0.25, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2}
# Gated, normalised and differential kinds; attention and MLP in parallel; rotary and relative positions.
PLAIN = (
    *("vit_tiny_patch16_224", "aimv2_large_patch14_224", "beit3_base_patch16_224", "vit_base_patch16_xp_224"),
    *("vit_so150m_patch16_reg4_gap_256", "vit_dpwee_patch16_reg1_gap_256"),
)
PLACED = ("eva02_tiny_patch14_336", "vit_small_patch16_dinov3", "beit_base_patch16_224")
SCALED = ("vit_small_patch14_reg4_dinov2", "vit_small_patch16_18x2_224")


def network(name: str, **overrides: Any) -> Backbone:
    """Return a small network in training, in float64."""
    return (tiny if name in PLACED else small)(name, **overrides).train()


def passed(model: Backbone, choice: Any, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Go forward and backward; return logits and gradients."""
    torch.manual_seed(0)
    model.zero_grad()
    model.set_grad_checkpointing(choice)
    x = images(model.config, batch=8).to(next(model.parameters()).dtype)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = model(x, sample_seeds=torch.arange(8))
    logits.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients}


def counted(model: Backbone, choice: Any, **options: Any) -> tuple[dict[str, Tensor], int]:
    """Do the same and return the operations in products, too."""
    with FlopCounterMode(display=False) as counter:
        results = passed(model, choice, **options)
    return results, counter.get_total_flops()


def check_same_bits(model: Backbone, **options: Any) -> None:
    """Demand the plain pass's bits and its number of operations."""
    (plain, operations), (lean, again) = counted(model, False, **options), counted(model, "elementwise", **options)
    assert plain.keys() == lean.keys() and again == operations
    for name, value in plain.items():
        assert torch.equal(lean[name], value), name


def calls_of_projections(model: Backbone) -> list[int]:
    """Return a list that grows whenever the last layer of an MLP or attention is called as a layer."""
    calls: list[int] = []
    for name, layer in model.named_modules():
        if name.endswith((".proj", ".fc2")) and name.startswith("blocks."):
            layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", [*PLAIN, *PLACED])
def test_elementwise__same_bits_and_no_product_twice(name: str) -> None:
    """Without LayerScale logits and gradients are the plain pass's bits, all noise on, for as many operations."""
    check_same_bits(network(name, **NOISY, init_values=None))


def test_elementwise__same_bits_under_autocast() -> None:
    """In 16 bits, too: a norm's output is kept by no product, nor is the copy that the product would have made."""
    check_same_bits(network("vit_tiny_patch16_224").float(), dtype=torch.bfloat16)


def test_elementwise__same_bits_beside_adapters() -> None:
    """LoRA with dropout beside frozen layers: the plain pass's bits, and the frozen layers' products once."""
    model = network("vit_small_patch14_reg4_dinov2").float()
    add_lora(model, rank=2, dropout=0.3)
    apply_tuning(model, "lora")
    randomize(model.train())
    check_same_bits(model)


@pytest.mark.parametrize("name", [*SCALED, "vit_small_patch16_dinov3"])
def test_elementwise__timms_gradients_with_layer_scale(name: str) -> None:
    """With LayerScale multiplied into weights every gradient is timm's up to rounding; where it is frozen it is not."""
    model, theirs = tiny_pair(name) if name in PLACED else small_pair(name)
    calls, x = calls_of_projections(model), images(model.config, batch=8)
    theirs.train()(x).square().sum().backward()
    lean = passed(model.train(), "elementwise")
    wanted = dict(theirs.named_parameters())
    for key, value in lean.items():
        if key != "logits":
            torch.testing.assert_close(value, wanted[key].grad, rtol=1e-9, atol=1e-10)
    num_called = len(calls)
    passed(model, False)
    assert len(calls) - num_called > num_called
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("gamma" not in key)
    calls.clear()
    check_same_bits(model)


@pytest.mark.parametrize(("dtype", "folds"), [(torch.bfloat16, True), (torch.float16, False)])
def test_elementwise__small_factors_in_16_bits(dtype: torch.dtype, folds: bool) -> None:
    """bf16 holds weights times small factors; fp16 would not, so there the factors come after the product."""
    model = network("vit_small_patch14_reg4_dinov2").float()
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("ls1.gamma").fill_(1e-5)
    want = passed(model, False)
    calls = calls_of_projections(model)
    found = passed(model, "elementwise", dtype=dtype)
    assert (len(calls) < 2 * len(model.blocks)) == folds
    for name, value in want.items():
        assert nn.functional.cosine_similarity(found[name].flatten().float(), value.flatten(), dim=0) > 0.95, name


def test_elementwise__compiled() -> None:
    """A compiled network is one graph and gives what it gives without."""
    model = network("vit_small_patch14_reg4_dinov2", depth=1)
    want = passed(model, False)
    model.compile(fullgraph=True, backend="aot_eager")
    found = passed(model, "elementwise")
    for name, value in want.items():
        torch.testing.assert_close(found[name], value)


def test_elementwise__twice_through_one_graph() -> None:
    """What is made again can be made again once more: a second backward pass adds the same gradient."""
    model = network("vit_small_patch14_reg4_dinov2")
    model.set_grad_checkpointing("elementwise")
    loss = model(images(model.config, batch=8)).square().sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    loss.backward()
    twice = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for first, both in zip(once, twice, strict=True):
        torch.testing.assert_close(both, 2 * first)


def test_elementwise__a_pass_thrown_away_is_gone() -> None:
    """Without a backward pass the activations go with the logits: nothing waits for the garbage collector."""
    model = network("vit_small_patch14_reg4_dinov2")
    model.set_grad_checkpointing("elementwise")
    held: list[weakref.ref[Any]] = []
    for block in model.blocks:
        block.get_submodule("mlp.fc1").register_forward_hook(
            lambda *call: held.append(weakref.ref(call[-1].untyped_storage()))
        )
    gc.disable()
    try:
        logits = model(images(model.config))
        assert len(held) == len(model.blocks) and all(found() is not None for found in held)
        del logits
        assert all(found() is None for found in held)
    finally:
        gc.enable()


def test_set_grad_checkpointing__choices() -> None:
    """True is blocks, as in timm; what is no choice is refused with the choices."""
    model = small("vit_tiny_patch16_224")
    assert model.grad_checkpointing is False
    for given, want in ((True, "blocks"), ("elementwise", "elementwise"), (False, False)):
        model.set_grad_checkpointing(given)
        assert model.grad_checkpointing == want
    with pytest.raises(RequestError, match="grad_checkpointing 'some' is not one of False, True, 'elementwise'"):
        model.set_grad_checkpointing("some")
