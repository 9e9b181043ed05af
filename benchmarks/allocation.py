"""What tensors take at most while something runs: shared by the scripts beside it, and nothing to run by itself."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def most_allocated(work: Callable[[], object], *, held: int = 0) -> int:
    """Return the most bytes that torch's profiler sees allocated at once while `work` runs, on top of `held`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = held
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
