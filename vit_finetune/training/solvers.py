"""Convex fits of a linear layer, each over a path of penalties: L2-regularised logistic regression, and ridge.

Small matrices: they are solved on one thread, where more only wait for each other, so the solution is the same on any
number of cores.

Legend: n pictures, d features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread as long as the block lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_logistic(
    x: Tensor, labels: Tensor, *, num_classes: int, penalties: Sequence[float], max_iter: int = 50
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight [d, K] and bias [K] of L2-regularised logistic regression, one per penalty.

    What is minimised is the mean cross-entropy + penalty / 2 x the squared weights; each penalty starts from the
    solution of the one before, so give them in falling order.

    Args:
        x: features [n, d].
        labels: class indices [n].
        num_classes: K.
        penalties: above 0.
        max_iter: L-BFGS iterations per penalty.
    """
    weight = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, requires_grad=True)
    for penalty in penalties:
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=max_iter, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss(solver: torch.optim.LBFGS = solver, penalty: float = penalty) -> Tensor:
            solver.zero_grad()
            value = functional.cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with one_thread():
            solver.step(loss)  # type: ignore[no-untyped-call]
        yield weight.detach().clone(), bias.detach().clone()


def fit_ridge(
    x: Tensor, labels: Tensor, *, num_classes: int, penalties: Sequence[float], orthogonal: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight [d, K] and bias [K] of least squares on one-hot classes, one per penalty, in closed form.

    What is minimised is the mean squared error + penalty x the squared weights.

    Args:
        x: features [n, d].
        labels: class indices [n].
        num_classes: K.
        penalties: above 0.
        orthogonal: the columns of `x` are centred and orthogonal to each other, as scores of the components of the
            same pictures are; nothing is then left to be solved.
    """
    targets = functional.one_hot(labels, num_classes).to(x)
    mean, base = x.mean(dim=0), targets.mean(dim=0)
    joint = (x - mean).T @ (targets - base)
    own = (x - mean).square().sum(dim=0) if orthogonal else (x - mean).T @ (x - mean)
    for penalty in penalties:
        if orthogonal:
            weight = joint / (own + penalty * len(x))[:, None]
        else:
            weight = torch.linalg.solve(own + penalty * len(x) * torch.eye(len(own), dtype=x.dtype), joint)
        yield weight, base - mean @ weight


def fit_sharpness(logits: Tensor, labels: Tensor) -> float:
    """Return the factor by which logits give the smallest cross-entropy: 1 / temperature.

    Args:
        logits: [n, K], of pictures that the layer was not fitted on.
        labels: class indices [n].

    Source: temperature scaling (arXiv 1706.04599).
    """
    log_factor = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([log_factor], max_iter=50, line_search_fn="strong_wolfe")
    values = logits.double()

    def loss() -> Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(values * log_factor.exp(), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with one_thread():
        solver.step(loss)  # type: ignore[no-untyped-call]
    # A set that is told apart without error would ask for an infinite factor.
    return float(log_factor.detach().clamp(-5, 5).exp())
