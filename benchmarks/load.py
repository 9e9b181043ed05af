"""Time and memory to a ready 10-class ViT-L from a file of 1.2 GB: ours, timm, transformers, and the bare file read.

Each loads in a process of its own, once its libraries are imported; ready means that every weight has been touched, so
that memory mapped from the file is counted as soon as it is used. Memory is the process's peak above what it holds
after its imports. Rounds interleave the four; medians are told. Needs 3 GB of disk; Linux only.

Run: python benchmarks/load.py [--rounds 5] [--output load.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert_memory import NAME, make_source
from step import high_water

from vit_finetune import convert_checkpoint
from vit_finetune.common.files import write_json

WORKER = "--worker"
NUM_CLASSES = 10


def bare(folder: Path) -> Any:
    """Read every tensor of the file."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def ours(folder: Path) -> Any:
    """Open the file by our one call."""
    from vit_finetune import from_pretrained

    return from_pretrained(folder / "model.safetensors", name=NAME, num_classes=NUM_CLASSES)[0].state_dict()


def timms(folder: Path) -> Any:
    """Open the file by timm's one call."""
    import timm

    overlay = {"file": str(folder / "model.safetensors")}
    return timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=NUM_CLASSES
    ).state_dict()


def transformers_own(folder: Path) -> Any:
    """Open the same weights in its own layout."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(
        folder / "hf", num_labels=NUM_CLASSES, ignore_mismatched_sizes=True
    )
    return model.state_dict()


LOADERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "bare read": (bare, ("torch", "safetensors.torch")),
    "ours": (ours, ("vit_finetune.weights", "vit_finetune.models")),
    "timm": (timms, ("timm",)),
    "transformers": (transformers_own, ("transformers.models.vit.modeling_vit", "torchvision")),
}


def work(name: str, folder: str) -> None:
    """Load as one of them and print seconds and bytes: what `measured` starts."""
    from importlib import import_module

    loader, imports = LOADERS[name]
    for module in imports:
        import_module(module)
    before, started = high_water(), time.perf_counter()
    tensors = loader(Path(folder))
    touched = sum(float(tensor.sum()) for tensor in tensors.values())
    print(json.dumps({"seconds": time.perf_counter() - started, "bytes": high_water() - before, "sum": touched}))


def measured(name: str, folder: Path) -> dict[str, float]:
    """Load in a fresh process."""
    command = [sys.executable, __file__, WORKER, name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("load.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        make_source(folder / "model.safetensors")
        convert_checkpoint(folder / "model.safetensors", folder / "hf", to="hf_vit", verify=False, config=NAME)
        rounds = [{name: measured(name, folder) for name in LOADERS} for _ in range(arguments.rounds)]
    results = {}
    for name in LOADERS:
        seconds = statistics.median(found[name]["seconds"] for found in rounds)
        beyond = statistics.median(found[name]["seconds"] - found["bare read"]["seconds"] for found in rounds)
        memory = statistics.median(found[name]["bytes"] for found in rounds)
        times = memory / statistics.median(found["bare read"]["bytes"] for found in rounds)
        results[name] = {"seconds": seconds, "beyond_bare": beyond, "mb": memory / 2**20, "of_bare_memory": times}
        print(f"{name:<14} {seconds:6.2f} s ({beyond:+.2f})  {memory / 2**20:6.0f} MB ({times:.2f} x the bare read)")
    write_json(arguments.output, {"results": results, "rounds": rounds})


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(*sys.argv[2:])
    else:
        main()
