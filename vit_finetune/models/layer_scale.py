"""LayerScale, and the projection before it: in training its factors go into the weights where that is less work.

Source: CaiT (arXiv 2103.17239).
Legend: D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_finetune.models.recompute import is_recomputing, product_dtype, recomputed


class LayerScale(nn.Module):
    """One learned factor per channel, small at first, on what a branch adds to the residual stream."""

    def __init__(self, dim: int, *, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x` [..., D]."""
        return x * self.gamma


def factors_of(scale: nn.Module) -> Tensor | None:
    """Return the factors [D] of a LayerScale, None of the identity that stands for none."""
    return scale.gamma if isinstance(scale, LayerScale) else None


def project(layer: nn.Module, x: Tensor, gamma: Tensor | None) -> Tensor:
    """Return layer(x) * gamma.

    The gradient of gamma needs layer(x), one more tensor to keep. Multiplied into the weights instead, gamma gets the
    same gradient, up to rounding, through theirs; done while recomputing, where tokens outnumber the rows of weights
    that are multiplied.

    Args:
        layer: linear, or an adapter around one.
        x: [..., in].
        gamma: [D]; None multiplies by nothing.

    Returns:
        [..., D].
    """
    if gamma is None:
        return layer(x)  # type: ignore[no-any-return]
    if isinstance(layer, nn.Linear) and _goes_into_weights(layer, x, gamma):
        weight = recomputed(_scaled_rows, layer.weight, gamma)
        return functional.linear(x, weight, None if layer.bias is None else layer.bias * gamma)
    return layer(x) * gamma  # type: ignore[no-any-return]


def _goes_into_weights(layer: nn.Linear, x: Tensor, gamma: Tensor) -> bool:
    """Say whether the factors are learned and cheaper in the weights; fp16 would not hold such small ones."""
    is_plain = type(layer) is nn.Linear and gamma.requires_grad and is_recomputing()
    return is_plain and x.shape[:-1].numel() > x.shape[-1] and product_dtype(x) != torch.float16


def _scaled_rows(weight: Tensor, gamma: Tensor) -> Tensor:
    return weight * gamma[:, None]
