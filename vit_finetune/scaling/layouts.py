"""What each of N processes holds, and sends, under DDP and under FSDP2.

Sources: Rajbhandari et al., ZeRO (arXiv 1910.02054), for who keeps what; Zhao et al., PyTorch FSDP (arXiv 2304.11277),
for gathering block by block with one block ahead; a ring sends (N - 1)/N of a buffer per process to gather or to
reduce-scatter it, and twice that to all-reduce it (Patarasuk and Yuan, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from vit_finetune.scaling.footprint import Footprint

_AHEAD = 2  # blocks whose weights are whole at once: the one that computes and the one that is fetched


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process of a run holds and sends.

    Attributes:
        strategy: ddp or fsdp.
        weights: bytes.
        gradients: bytes of those that are not among the activations: DDP's buckets; FSDP2's part, and whole ones.
        optimizer: bytes of its states.
        average: bytes of the averaged weights.
        gathered: bytes of weights that are whole for a moment.
        activations: bytes of all that comes and goes in a step; gradients that were made by then are among it.
        sent: bytes that this process sends in a step.
    """

    strategy: str
    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    activations: int
    sent: int

    @property
    def peak(self) -> int:
        """All that is held, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered + self.activations


def share_of(held: Footprint, strategy: str, *, num_processes: int, accumulation: int, compute_bytes: int = 4) -> Share:
    """Return what each process of a run holds and sends.

    Args:
        held: of one process that holds all.
        strategy: ddp or fsdp.
        num_processes: that share a step.
        accumulation: micro-batches of a process in a step.
        compute_bytes: of a number while it computes: 2 in 16 bits; fsdp gathers weights in that.
    """
    n = num_processes
    fraction = (n - 1) / n
    if strategy == "ddp":
        return Share(
            strategy=strategy,
            weights=held.parameters,
            gradients=held.trained if n > 1 else 0,  # the buckets, a second copy that stays
            optimizer=held.optimizer,
            average=held.average,
            gathered=0,
            activations=held.activations,
            sent=round(2 * fraction * held.trained),
        )
    scale = compute_bytes / 4
    # Gradients of micro-batches that wait for the last one are whole; else one block's is whole at a time.
    whole = held.trained if accumulation > 1 else min(held.trained, held.largest_block + held.around_blocks)
    gathers = 2 * accumulation  # forward and backward of each micro-batch
    return Share(
        strategy=strategy,
        weights=-(-held.parameters // n),
        gradients=-(-held.trained // n) + round(scale * whole),
        optimizer=-(-held.optimizer // n),
        average=-(-held.average // n),
        gathered=round(scale * (_AHEAD * held.largest_block + held.around_blocks)),
        activations=held.activations,
        sent=round(fraction * (gathers * scale * held.parameters + scale * held.trained)),
    )
