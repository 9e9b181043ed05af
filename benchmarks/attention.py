"""Attention in bfloat16 on a CPU, forward and backward: ours beside torch's kernel, at several numbers of tokens.

Run: python benchmarks/attention.py [--rounds 9] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vit_finetune.models.attending import attend_in_bfloat16
from vit_finetune.models.attention import merge_heads, split_heads

SHAPES = ((17, 32), (50, 32), (101, 32), (197, 32), (257, 16), (577, 8), (1370, 2))  # tokens, pictures
WAYS = {"torch": functional.scaled_dot_product_attention, "ours": attend_in_bfloat16}


def seconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], tokens: int, pictures: int) -> float:
    """Return the seconds of one forward and backward pass of 6 heads of 64, laid out as a projection leaves them."""
    rows = torch.randn(pictures, tokens, 3 * 384).bfloat16().requires_grad_()
    q, k, v = (split_heads(part, 6) for part in rows.chunk(3, dim=-1))
    started = time.perf_counter()
    attended = merge_heads(attend(q, k, v))
    attended.backward(attended.detach())  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def main() -> None:
    """Print a line for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print("| tokens | pictures | torch, ms | ours, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for tokens, pictures in SHAPES:
        taken: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds + 1):
            for name, attend in WAYS.items():
                taken[name].append(seconds(attend, tokens, pictures))
        torchs, ours = (1000 * statistics.median(times[1:]) for times in taken.values())
        print(f"| {tokens} | {pictures} | {torchs:.1f} | {ours:.1f} | {torchs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
