"""Attention in bfloat16 on a CPU: gradients near to what torch's kernel gives, whole networks included."""

from __future__ import annotations

import pytest
import torch
from models_helpers import images, randomize, small
from torch import Tensor
from torch.nn import functional

from vit_finetune.models import attending
from vit_finetune.models.attending import attend

NAMES = ("queries", "keys", "values")


def heads(*shape: int) -> Tensor:
    """Return random features of heads that learn, bfloat16."""
    return torch.randn(*shape).bfloat16().requires_grad_()


def gradients(result: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of inputs, in double precision, by one that differs from place to place."""
    given = torch.linspace(-1, 1, result.numel()).view(result.shape)
    return [grad.double() for grad in torch.autograd.grad(result, inputs, given.to(result))]


def exactly(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of the formula, written out in double precision."""
    q, k, v = (x.detach().double().requires_grad_() for x in inputs)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return gradients(weights @ v, (q, k, v))


@pytest.mark.parametrize("num_queries", [1, 37])
@pytest.mark.parametrize("numbers", [1, 2**22])
def test_gradients_err_little_more_than_torchs_kernel(
    num_queries: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few and all queries, of all pictures together and one by one; the result is the kernel's, to the bit."""
    monkeypatch.setattr(attending, "_MAP_NUMBERS", numbers)
    torch.manual_seed(0)
    inputs = heads(3, 4, num_queries, 16), heads(3, 4, 37, 16), heads(3, 4, 37, 16)
    ours, kernel = attending.attend_in_bfloat16(*inputs), functional.scaled_dot_product_attention(*inputs)
    assert torch.equal(ours, kernel)
    for name, mine, theirs, true in zip(
        NAMES, gradients(ours, inputs), gradients(kernel, inputs), exactly(inputs), strict=True
    ):
        allowed = 1.5 * (theirs - true).norm() + 0.002 * true.norm()  # half a step of bfloat16
        assert (mine - true).norm() <= allowed < 0.05 * true.norm(), name


def test_values_may_be_wider_than_queries() -> None:
    """As in differential attention."""
    torch.manual_seed(0)
    inputs = heads(2, 3, 9, 8), heads(2, 3, 9, 8), heads(2, 3, 9, 16)
    for mine, true in zip(gradients(attending.attend_in_bfloat16(*inputs), inputs), exactly(inputs), strict=True):
        assert (mine - true).norm() < 0.02 * true.norm()


def test_only_where_it_is_the_faster_way() -> None:
    """In bfloat16 with a gradient to make, be it by autocast; not with dropout or a bias, nor in float32 and 64."""
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    assert not attending.suits(q, q, q) and not attending.suits(q.double(), q.double(), q.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert attending.suits(q, q, q) and type(attend(q, q, q).grad_fn).__name__ == "_AttendBackward"
        assert type(attend(q, q, q, bias=q.new_zeros(5, 5)).grad_fn).__name__ != "_AttendBackward"
        assert type(attend(q, q, q, dropout=0.1).grad_fn).__name__ != "_AttendBackward"
        with torch.no_grad():
            assert not attending.suits(q, q, q)
    with torch.autocast("cpu", torch.float16):
        assert not attending.suits(q, q, q)


@pytest.mark.parametrize("choice", [False, "elementwise", "blocks"])
def test_a_networks_gradients_err_little_more(choice: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float32, beside torch's kernel, whatever is recomputed."""
    model = randomize(small("vit_small_patch14_dinov2")).float().train()
    model.set_grad_checkpointing(choice)

    def of(*, is_half: bool) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            logits = model(images(model.config, batch=8).float())
        logits.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    true, ours = of(is_half=False), of(is_half=True)
    monkeypatch.setattr(attending, "suits", lambda *_: False)
    assert (ours - true).norm() < 1.2 * (of(is_half=True) - true).norm()
