"""What a training step holds in memory, counted tensor by tensor without computing anything.

A real forward pass, backward pass and optimizer step are made with tensors that have shapes and no numbers (torch's
FakeTensorMode); every piece of memory is counted as an operation makes it and as the last owner lets go of it. So any
network, any choice of what trains, gradient checkpointing and autocast are counted as they are, by no formula of ours.
Not counted: what a kernel takes inside itself, the libraries' own memory (on a GPU about 0.5 GB), and the allocator's
rounding. docs/scaling.md says what it was compared with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a training step of one process that holds the whole network.

    Attributes:
        micro_batch: pictures that go through the network at once.
        parameters: all weights.
        trained: the weights that train, so also their gradients.
        optimizer: its states.
        average: of the averaged weights, 0 without.
        update: the most that is held while the optimizer makes its step, whatever the micro-batch.
        passes: the most that is held while pictures go forward and backward.
        largest_block: the weights of the largest block.
        around_blocks: the weights outside of the blocks.
    """

    micro_batch: int
    parameters: int
    trained: int
    optimizer: int
    average: int
    update: int
    passes: int
    largest_block: int
    around_blocks: int

    @property
    def peak(self) -> int:
        """The most that is held at any moment of a step."""
        return max(self.update, self.passes)

    @property
    def activations(self) -> int:
        """What the peak holds beside weights, optimizer states and average: what comes and goes, gradients among it."""
        return self.peak - self.parameters - self.optimizer - self.average


class _Counter(TorchDispatchMode):
    """Counts the bytes alive of all that operations make while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's memory once, until its last owner lets go of it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: object) -> None:
            self._seen.pop(key, None)
            self.alive -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return made


def footprint(
    model: nn.Module,
    *,
    blocks: Sequence[nn.Module],
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer],
    image_size: tuple[int, int, int],
    micro_batch: int,
    mixed_precision: str = "no",
    keeps_average: bool = False,
) -> Footprint:
    """Count what a training step holds.

    Args:
        model: on the meta device, with what trains chosen; left without weights.
        blocks: its blocks.
        optimizer_of: makes the optimizer over a network.
        image_size: channels, height and width of a picture.
        micro_batch: pictures at once.
        mixed_precision: no, bf16 or fp16.
        keeps_average: an average of the weights is kept, too.
    """
    with FakeTensorMode(), _Counter() as counter:
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))  # type: ignore[no-untyped-call]
        model.train()
        parameters, buffers = list(model.parameters()), list(model.buffers())
        for tensor in (*parameters, *buffers):
            counter.add(tensor)
        average = [torch.empty_like(tensor) for tensor in parameters] if keeps_average else []
        optimizer = optimizer_of(model)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # makes its states
        update, counter.peak = counter.peak, 0
        optimizer.zero_grad(set_to_none=True)
        _pass(model, (micro_batch, *image_size), mixed_precision)
        states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        return Footprint(
            micro_batch=micro_batch,
            parameters=_bytes_of(parameters) + _bytes_of(buffers),
            trained=_bytes_of(trained),
            optimizer=_bytes_of(states),
            average=_bytes_of(average),
            update=update,
            passes=counter.peak,
            largest_block=max(_bytes_of(list(block.parameters())) for block in blocks),
            around_blocks=_bytes_of(parameters) - sum(_bytes_of(list(block.parameters())) for block in blocks),
        )


def _pass(model: nn.Module, shape: tuple[int, ...], mixed_precision: str) -> None:
    """Go forward and backward; gradients are there afterwards."""
    images = torch.empty(shape)
    seeds = torch.empty(shape[0], dtype=torch.int64)
    with torch.autocast(
        "cpu", torch.float16 if mixed_precision == "fp16" else torch.bfloat16, enabled=mixed_precision != "no"
    ):
        logits = model(images, sample_seeds=seeds)
    labels = torch.empty(shape[0], dtype=torch.int64)
    nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
