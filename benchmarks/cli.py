"""What a person waits for before anything happens: --help, the first training step, a conversion.

--help: wall seconds of the command, median. First training step: from the command to the first row of metrics.jsonl of
the quickstart's pictures, less what `import torch, torchvision` takes, which takes turns with it; and how much of that
is the check of the data before a run. Conversion: see convert_memory.py, whose figures are told here in one line.

Run: python benchmarks/cli.py [--rounds 5] [--no-convert] [--output cli.json]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convert_memory import NAME, make_source, measured, seconds_to_copy_twice

from vit_finetune import write_demo_digits
from vit_finetune.common.files import write_json

OURS = [sys.executable, "-m", "vit_finetune"]


def seconds_of(command: list[str]) -> float:
    """Run a command to its end; return its wall seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def seconds_to_first_step(pictures: Path, folder: Path, *settings: str) -> float:
    """Start a run, wait for its first row of figures, end it."""
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [*OURS, "train", "quickstart", f"data.root={pictures}", f"run.dir={run_dir}", *settings]
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(f"the run ended before its first step:\n{(folder / 'log').read_text()}")
            time.sleep(0.01)
    seconds = time.perf_counter() - started
    process.terminate()  # it saves its step and ends
    process.wait()
    return seconds


def main() -> None:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-convert", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("cli.json"))
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as text:
        folder, pictures = Path(text), write_demo_digits(Path(text) / "pictures")
        for _ in range(arguments.rounds):
            found = {
                "help": seconds_of([*OURS, "--help"]),
                "python": seconds_of([sys.executable, "-c", ""]),
                "imports": seconds_of([sys.executable, "-c", "import torch, torchvision"]),
                "first step": seconds_to_first_step(pictures, folder),
                "first step, run.check=off": seconds_to_first_step(pictures, folder, "run.check=off"),
            }
            for name, seconds in found.items():
                times.setdefault(name, []).append(seconds)
        results |= {name: statistics.median(values) for name, values in times.items()}
        for name in ("first step", "first step, run.check=off"):
            pairs = zip(times[name], times["imports"], strict=True)
            results[f"{name}, beyond the imports"] = statistics.median(step - imports for step, imports in pairs)
        if not arguments.no_convert:
            source = folder / "model.safetensors"
            make_source(source)
            copies = seconds_to_copy_twice(source)
            seconds = measured(source, "hf_vit")["seconds"]
            results |= {"copied twice": copies, f"convert {NAME}": seconds, "convert / copied twice": seconds / copies}
    for name, seconds in results.items():
        print(f"{name:<46} {seconds:6.2f}")
    write_json(arguments.output, {"medians": results, "all": times})


if __name__ == "__main__":
    main()
