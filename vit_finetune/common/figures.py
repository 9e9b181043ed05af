"""Which of two figures is better: the one rule for checkpoints, soups, sweeps and rungs."""

from __future__ import annotations


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Say whether `value` beats `best`; a tie does not, so the earlier one stays."""
    if best is None:
        return True
    return value < best if metric == "loss" else value > best
