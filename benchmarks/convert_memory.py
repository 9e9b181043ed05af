"""What a conversion takes of memory and time: a ViT-L of 1.2 GB, in a process of its own, without the proof.

Each conversion starts from the result of the one before: names change, queries, keys and values are taken apart and put
together again. Memory is the largest RssAnon (anonymous memory; mapped files don't count) above what the process holds
after its imports, against 1.3 times the largest tensor plus 300 MB. Time is held against copying the file twice. Linux
only; needs 5 GB of disk.

Run: python benchmarks/convert_memory.py [--to hf_vit torchvision] [--output convert_memory.json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vit_finetune import convert_checkpoint, create_model
from vit_finetune.common.files import sync, write_json
from vit_finetune.weights import embedded_metadata
from vit_finetune.weights.lazy import lazily
from vit_finetune.weights.writers import write_safetensors

NAME = "vit_large_patch16_224"
WORKER = "--worker"
MB = 2**20


def make_source(path: Path) -> int:
    """Write random weights with their architecture's name; return the largest tensor's bytes."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = create_model(NAME, weight_init="skip").state_dict()
    state = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
    write_safetensors(path, lazily(state), metadata=embedded_metadata(NAME, {}))
    return max(value.nbytes for value in state.values())


def seconds_to_copy_twice(source: Path) -> float:
    """Return how long two copies of a file take, one after the other, each synced to disk as conversions are."""
    start = time.perf_counter()
    for _ in range(2):
        sync(shutil.copyfile(source, source.with_name("copy")))
    seconds = time.perf_counter() - start
    source.with_name("copy").unlink()
    return seconds


def anonymous_mb(process_id: int) -> float:
    """Return the anonymous memory of a process in MB; 0 when it is ending."""
    text = Path(f"/proc/{process_id}/status").read_text()
    line = next((line for line in text.splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(line.split()[1]) / 1024


def work(source: str, target: str, to: str) -> None:
    """Convert when told to: what the process started by `measured` does."""
    print("imported", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    convert_checkpoint(source, target, to=to, verify=False, config=NAME)
    print(time.perf_counter() - start, flush=True)


def measured(source: Path, to: str) -> dict[str, float]:
    """Convert to the folder `to` in a fresh process, and look at its memory every two milliseconds."""
    target = source.parent / to
    command = [sys.executable, __file__, WORKER, str(source), str(target), to]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        imported = anonymous_mb(process.pid)
        memory = [imported]
        process.stdin.write("go\n")
        process.stdin.close()
        while process.poll() is None:
            memory.append(anonymous_mb(process.pid))
            time.sleep(0.002)
        seconds = float(process.stdout.read())
    return {"imported_mb": imported, "above_imports_mb": max(memory) - imported, "seconds": seconds}


def main() -> None:
    """Measure every target, print a line for each, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", nargs="+", default=["hf_vit", "torchvision", "timm"], metavar="FORMAT")
    parser.add_argument("--output", type=Path, default=Path("convert_memory.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.safetensors"
        allowed = (1.3 * make_source(source)) / MB + 300
        size = source.stat().st_size / MB
        copies = seconds_to_copy_twice(source)
        results: dict[str, Any] = {"network": NAME, "file_mb": size, "allowed_mb": allowed, "copied_twice_s": copies}
        print(f"{NAME}: {size:.0f} MB, copied twice in {copies:.1f} s; {allowed:.0f} MB above the imports are allowed")
        for to in arguments.to:
            found = results[to] = measured(source, to)
            (shutil.rmtree if source.is_dir() else Path.unlink)(source)
            source = source.parent / to
            print(
                f"{to:<12} {found['above_imports_mb']:5.0f} MB above {found['imported_mb']:.0f} MB, "
                f"{found['seconds']:5.1f} s, {found['seconds'] / copies:.1f} times two copies"
            )
    write_json(arguments.output, results)
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        work(*sys.argv[2:])
    else:
        main()
