"""Cheap results that a backward pass needs are computed again there instead of being kept.

A product keeps what it multiplies, for the gradient of its weights. Where that came out of a norm or an activation, the
norm or activation has kept what it came from as well: the same knowledge lies in memory twice. While a block runs under
`recomputing`, what `recomputed` returns is not kept by whatever keeps it otherwise (a product, attention, an adapter);
how to make it again is. No product is computed twice, and the numbers are the same bits.

torch's `checkpoint` forgets all that a function makes and so repeats products too where anything behind them is needed
(an adapter beside a frozen layer); here each tensor is decided upon by itself. A compiled network is left alone: its
compiler decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import local
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GradCheckpointing = Literal[False, "elementwise", "blocks"]


class _Record:
    """What was made cheaply, by its memory, and how to make it again."""

    def __init__(self) -> None:
        self._makers: WeakKeyDictionary[torch.UntypedStorage, Callable[[], Tensor]] = WeakKeyDictionary()

    def add(self, out: Tensor, layer: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        """Remember that `out` is `layer` of `inputs`, unless it is one of them."""
        if all(out.untyped_storage() is not value.untyped_storage() for value in inputs):
            kept = [self.pack(value) for value in inputs]
            kind = out.device.type
            precision = partial(torch.autocast, kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            self._makers[out.untyped_storage()] = partial(_make, layer, kept, precision)

    def pack(self, tensor: Tensor) -> Any:
        """Return what the graph keeps of a tensor: the numbers, or how to make them again and where they lie in that.

        It must not lead back to the graph: such a circle is never freed.
        """
        maker = self._makers.get(tensor.untyped_storage())
        return tensor.detach() if maker is None else (maker, tensor.size(), tensor.stride(), tensor.storage_offset())


def _make(layer: Callable[..., Tensor], kept: Sequence[Any], precision: Callable[[], Any]) -> Tensor:
    with torch.no_grad(), precision():
        return _for_product(layer(*map(_unpack, kept)))


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    maker, *place = kept
    made: Tensor = maker().as_strided(*place)
    return made


class _Running(local):
    """What this thread is in the middle of."""

    record: _Record | None = None


_RUNNING = _Running()


@contextmanager
def recomputing() -> Iterator[None]:
    """Let what `recomputed` returns inside be made again in the backward pass."""
    before, _RUNNING.record = _RUNNING.record, _Record()
    try:
        with torch.autograd.graph.saved_tensors_hooks(_RUNNING.record.pack, _unpack):
            yield
    finally:
        _RUNNING.record = before


def is_recomputing() -> bool:
    """Say whether `recomputing` is on here."""
    return not torch.compiler.is_compiling() and _RUNNING.record is not None


def recomputed(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return layer(*inputs); under `recomputing` it is made again in the backward pass instead of being kept.

    Args:
        layer: cheap, without chance in it; all that it has beside `inputs` are weights and constants.
        inputs: of any shapes; they are kept.

    Returns:
        What the layer gives; under autocast and `recomputing` as a product takes it, in 16 bits.
    """
    record = _RUNNING.record if is_recomputing() else None
    if record is None:
        return layer(*inputs)
    out = _for_product(layer(*inputs))
    record.add(out, layer, inputs)
    return out


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which a matrix product of `x` is computed here: autocast's where that is on."""
    kind = x.device.type
    is_cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if is_cast else x.dtype


def _for_product(x: Tensor) -> Tensor:
    """Cast as autocast would on the way into a product: what is kept is then what was made, not a copy of it."""
    return x.to(product_dtype(x))


def run_block(block: nn.Module, *inputs: Any, grad_checkpointing: GradCheckpointing) -> Tensor:
    """Return block(*inputs).

    Args:
        block: of a network.
        inputs: what it takes.
        grad_checkpointing: what is not kept for the backward pass: "blocks": anything but `inputs`; "elementwise": what
            the block has of `recomputed`, in training; False: all is kept.
    """
    if grad_checkpointing == "blocks":
        return checkpoint(block, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
    is_on = grad_checkpointing and block.training and not torch.compiler.is_compiling()
    with recomputing() if is_on else nullcontext():
        return block(*inputs)  # type: ignore[no-any-return]
