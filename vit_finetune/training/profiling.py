"""Where the time of a training step goes: a few steps under torch's profiler, told on one page.

The batches of a run are the clock: between two requests for a step's pictures lies the whole step, and what comes with
it (an evaluation, a checkpoint). The loop itself knows nothing of this.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vit_finetune.common.files import write_text
from vit_finetune.training.console import RunConsole

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

SKIPPED_STEPS = 2  # the first ones load kernels and grow buffers
PROFILED_STEPS = 3
_NUM_OPERATIONS = 15
# Kinds of work by what the names of torch's operations hold; the first that fits counts.
_KINDS = {
    "optimizer": ("fused_adam", "fused_sgd", "_foreach_", "addcmul_", "addcdiv_", "lerp_"),
    "attention": ("dot_product", "_flash_attention", "_efficient_attention", "_softmax"),
    "matrix products": (
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::linear",
        "mkldnn_linear",
        "gemm",
    ),
    "patch embedding": ("convolution", "conv2d"),
    "norms": ("layer_norm", "rms_norm"),
    "activations": ("gelu", "silu", "sigmoid"),
    "copies": ("copy_", "aten::cat", "aten::stack", "aten::clone", "_to_copy", "Memcpy"),
    "memory": ("aten::empty", "aten::zero", "aten::fill", "aten::resize", "Memset"),
    "sums and products": ("aten::add", "aten::mul", "aten::sub", "aten::div", "aten::sum", "aten::mean"),
}
_OTHER = "other"


def kind_of(operation: str) -> str:
    """Return the kind of work that an operation of torch is, by its name."""
    return next((kind for kind, parts in _KINDS.items() if any(part in operation for part in parts)), _OTHER)


def profiled(
    steps: Iterator[T], wanted: bool, accelerator: Accelerator, run_dir: Path, console: RunConsole
) -> Iterator[T]:
    """Yield the steps of a run; where it is wanted, profile three of them on the first process.

    Args:
        steps: what the loop asks for at the beginning of each step.
        wanted: whether to profile at all.
        accelerator: of the run.
        run_dir: profile/trace.json and profile/summary.md are written there.
        console: told where.
    """
    if not (wanted and accelerator.is_main_process):
        yield from steps
        return
    waited, started, number = 0.0, 0.0, 0
    waits: list[float] = []
    profiler = torch.profiler.profile()
    for number, step in enumerate(_timed(steps, waits), start=1):
        if number == SKIPPED_STEPS + 1:
            waits.clear()
            profiler.start()
            started = time.perf_counter()
        yield step
        if number == SKIPPED_STEPS + PROFILED_STEPS:
            seconds, waited = time.perf_counter() - started, sum(waits)
            profiler.stop()
            _write(run_dir / "profile", profiler, seconds=seconds, waited=waited)
            console.say(f"profile  {PROFILED_STEPS} steps in {run_dir / 'profile' / 'summary.md'}")
            yield from steps
            return
    if number < SKIPPED_STEPS + PROFILED_STEPS:
        console.say(f"profile  none: it needs {SKIPPED_STEPS + PROFILED_STEPS + 1} steps, the run had {number}")


def _timed(steps: Iterable[T], waits: list[float]) -> Iterator[T]:
    """Yield the steps and note how long each was waited for."""
    asked = time.perf_counter()
    for step in steps:
        waits.append(time.perf_counter() - asked)
        yield step
        asked = time.perf_counter()


def _write(folder: Path, profiler: torch.profiler.profile, *, seconds: float, waited: float) -> None:
    """Write the trace and the page."""
    folder.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    on_device = torch.cuda.is_available()
    rows = [_row(event, on_device=on_device) for event in profiler.key_averages()]
    write_text(folder / "summary.md", summary(rows, seconds=seconds, waited=waited, on_device=on_device))


def _row(event: Any, *, on_device: bool) -> tuple[str, float, int]:
    """Return name, own seconds and number of calls of an operation."""
    microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
    return str(event.key), microseconds / 1e6, int(event.count)


def summary(rows: Iterable[tuple[str, float, int]], *, seconds: float, waited: float, on_device: bool) -> str:
    """Return the page.

    Args:
        rows: name, own seconds and calls of each operation over all profiled steps.
        seconds: wall time of these steps.
        waited: of it, for pictures.
        on_device: the operations' times are a GPU's.
    """
    known = sorted(rows, key=lambda row: -row[1])
    total = sum(own for _, own, _ in known) or 1.0
    kinds: dict[str, float] = {}
    for name, own, _ in known:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + own
    place = "the GPU" if on_device else "the CPU"
    lines = [
        f"# Where {PROFILED_STEPS} training steps went",
        "",
        f"A step took {seconds / PROFILED_STEPS:.3f} s, the profiler's own cost included; "
        f"{waited / seconds:.0%} of it was waiting for pictures. Shares below are of {total:.3f} s on {place}.",
        "",
        *_table(("kind of work", "share"), [(kind, own / total) for kind, own in _largest(kinds)]),
        "",
        *_table(("operation", "share", "calls a step"), _operations(known[:_NUM_OPERATIONS], total)),
    ]
    return "\n".join(lines) + "\n"


def _largest(kinds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(kinds.items(), key=lambda item: -item[1])


def _operations(rows: Iterable[tuple[str, float, int]], total: float) -> list[tuple[str, float, str]]:
    return [(f"`{name}`", own / total, f"{calls / PROFILED_STEPS:g}") for name, own, calls in rows]


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """Return a table; numbers are shares."""
    cells = [[f"{cell:.1%}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
