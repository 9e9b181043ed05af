"""Sharding: each process keeps a part of every weight, of its gradient and of the optimizer's state (FSDP2).

torch's `fully_shard`, a block at a time, on a mesh of all processes of the run. Accelerate has a route of its own to
the same function; it is not taken, because on a CPU it trains DDP without a word, and so no test here could run it.
What a file holds is always whole: a checkpoint of a sharded run is the file that one process would have written, and
any number of processes, sharded or not, goes on from it.

Every forward pass of a sharded network gathers weights from all processes, so all of them must do equally many, in
training (`MicroBatches.as_many`) and in evaluation (`in_step`), where their shares differ by a batch or are empty.

Sources: PyTorch FSDP2, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html; ZeRO, arXiv 1910.02054.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from vit_finetune.common.errors import RequestError
from vit_finetune.models import Backbone

if TYPE_CHECKING:
    from accelerate import Accelerator

E = TypeVar("E")

FSDP = "fsdp"
_DEVICES = ("cuda",)


def check_strategy(strategy: str, accelerator: Accelerator) -> None:
    """Refuse to shard where that cannot be.

    Args:
        strategy: auto, ddp or fsdp.
        accelerator: of the run.

    Raises:
        RequestError: fsdp without CUDA, in fp16, or in a process that was not started together with others.
    """
    if strategy != FSDP:
        return
    kind = accelerator.device.type
    if kind not in _DEVICES:
        raise RequestError(
            f"run.strategy fsdp needs CUDA devices, and this run is on {kind}; use run.strategy ddp, "
            "which computes the same"
        )
    if not is_wanted(strategy):
        raise RequestError(
            "run.strategy fsdp shares the weights out among processes, and this is a single one; start with "
            "`vit-finetune train ... --num-processes N` or torchrun, or use run.strategy auto"
        )
    if accelerator.mixed_precision == "fp16":
        raise RequestError(
            "run.strategy fsdp works in bf16 or full precision, and this run is in fp16; set train.mixed_precision"
        )


def is_wanted(strategy: str) -> bool:
    """Say whether the network of this process is to be sharded: asked for, and there are processes to share it."""
    return strategy == FSDP and torch.distributed.is_available() and torch.distributed.is_initialized()


def shard(model: Backbone, *, device: torch.device, mixed_precision: str, cpu_offload: bool) -> None:
    """Share the weights of a network out among all processes, in place; each block is gathered when it is computed.

    Args:
        model: the bare network, the same on every process, still on the CPU: a block at a time goes to the device.
        device: of this process.
        mixed_precision: no, or bf16: the blocks are then gathered as bf16 and gradients added up in float32.
        cpu_offload: keep the parts, and the optimizer's state with them, in the CPU's memory.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Pinned memory is for copies to a GPU; without one there is none to be had.
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
    # Autocast chooses what is computed in which precision, as without sharding; so nothing else is cast here. What is
    # outside of the blocks is small, and in float32 it keeps the sum that runs through them in float32.
    lower = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    in_blocks = lower if mixed_precision == "bf16" else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=in_blocks, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(), offload_policy=offload)


def is_sharded(model: nn.Module) -> bool:
    """Say whether `shard` was applied to a network."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return the same tensors with sharded ones gathered, on the CPU; all processes call this together.

    Args:
        tensors: by name, in the same order on every process.
        keep: false on processes that only take part: theirs are let go of at once.

    Returns:
        Name -> tensor; those that are not sharded as they are.
    """
    from torch.distributed.tensor import DTensor

    found = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            # Parts that are kept on the CPU are gathered by the devices' network.
            there: DTensor = tensor.detach().to(tensor.device_mesh.device_type)  # type: ignore[assignment]
            gathered = there.full_tensor()
            found[name] = gathered.cpu() if keep else gathered.new_empty(0)
        else:
            found[name] = tensor
    return found if keep else {}


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor where and as another one is kept: on its device, this process's part if that is sharded.

    Args:
        tensor: whole, the same on every process.
        like: of the same shape; or not sharded, then of any.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    mesh = like.device_mesh
    part = distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)
    return part.to(like.device)


def load_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a network, sharded or not; `tensors` are those of its state dict."""
    if not is_sharded(model):
        model.load_state_dict(tensors)
        return
    there = model.state_dict()
    model.load_state_dict({name: part_like(tensor, there[name]) for name, tensor in tensors.items()})


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor; all of it where it is not sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def in_step(
    batches: Iterable[E], model: nn.Module, accelerator: Accelerator, *, image_size: tuple[int, int, int]
) -> Iterator[E]:
    """Yield this process's batches of an evaluation while the others do a forward pass each.

    Args:
        batches: this process's, possibly none; the caller does one forward pass for each.
        model: what it passes them through; where it is not sharded nobody waits for anybody.
        accelerator: of the run.
        image_size: channels, height and width of a picture.
    """
    if not is_sharded(model):
        yield from batches
        return
    mine = iter(batches)
    while True:
        batch = next(mine, None)
        have = torch.tensor([batch is not None], dtype=torch.int64, device=accelerator.device)
        if not int(accelerator.reduce(have, reduction="sum")):
            return
        if batch is not None:
            yield batch
        else:  # nothing is left here: what this gives is thrown away
            weight = next(model.parameters())
            with accelerator.autocast():
                model(torch.zeros(1, *image_size, device=accelerator.device, dtype=weight.dtype))
