"""What happens between queries, keys and values: the only place where tokens look at each other.

torch's kernels do it, but for the backward pass in bfloat16 on a CPU: that kernel leaves the processor's units for
products of 16 bits unused, and at 50 to 200 tokens takes up to four times as long as plain products, a quarter of a
training step (benchmarks/attention.py). In float32, and forward in both, the kernels are the faster ones.

Legend: B batch, N tokens, nh hd heads and head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vit_finetune.models.recompute import product_dtype

_MAP_NUMBERS = 2**22  # of attention maps at once: more do not stay near the processor


def softmax_map(q: Tensor, k: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """Return the attention weights [B, nh, N, N] of queries and keys [B, nh, N, hd]; `bias` is added to the scores."""
    scores: Tensor = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(hd) + bias) v: the only place where tokens look at each other.

    Args:
        q: queries [B, nh, Nq, hd].
        k: keys [B, nh, N, hd].
        v: values [B, nh, N, any width].
        dropout: share of attention weights to drop; the caller passes 0 in evaluation.
        bias: added to the scores, broadcast to [B, nh, Nq, N]; None for none.

    Returns:
        [B, nh, Nq, width of v].
    """
    if bias is None and not dropout and suits(q, k, v):
        return attend_in_bfloat16(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Say whether `attend_in_bfloat16` is the faster way for queries, keys and values here."""
    is_learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    is_here = q.device.type == "cpu" and not torch.compiler.is_compiling()
    return is_learning and is_here and all(product_dtype(x) == torch.bfloat16 for x in (q, k, v))


def attend_in_bfloat16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(hd)) v; has a first derivative only.

    Args:
        q: queries [B, nh, Nq, hd], on a CPU.
        k: keys [B, nh, N, hd].
        v: values [B, nh, N, any width].

    Returns:
        [B, nh, Nq, width of v], bfloat16.
    """
    attended: Tensor = _Attend.apply(*(x.to(torch.bfloat16) for x in (q, k, v)))
    return attended


class _Attend(torch.autograd.Function):
    """Keeps what torch's kernel keeps, less its result."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return functional.scaled_dot_product_attention(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        inputs = ctx.saved_tensors
        q, k, _ = inputs
        pictures_at_once = max(1, _MAP_NUMBERS // (q.shape[1] * q.shape[2] * k.shape[2]))
        parts = zip(*(x.split(pictures_at_once) for x in (*inputs, grad)), strict=True)
        return tuple(map(_joined, zip(*(_gradients(*part) for part in parts), strict=True)))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gradients(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values [b, nh, N, hd] of some pictures, by that of what they give."""
    with torch.enable_grad():
        q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
        weights = softmax_map(q, k)
    of_q, of_k = torch.autograd.grad(weights, (q, k), grad @ v.mT)
    return of_q, of_k, weights.detach().mT @ grad
