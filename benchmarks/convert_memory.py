"""What memory a conversion takes: a ViT-L of 1.2 GB, without the proof, against the promise.

The promise: anonymous memory (RssAnon; mapped files don't count) stays under 1.3 times the largest tensor plus 300 MB
above what the process holds after its imports. Linux only. Run: python benchmarks/convert_memory.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from vit_finetune import convert_checkpoint, create_model, export_model_folder
from vit_finetune.common.preprocess import PreprocessSpec

SOURCE_NAME = "vit_large_patch16_224"
TARGETS = ("hf_vit", "torchvision", "timm")


def anonymous_mb() -> float:
    """Return the anonymous memory of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


class Peak(threading.Thread):
    """Watches the anonymous memory of this process until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = anonymous_mb(), False

    def run(self) -> None:
        """Look every two milliseconds."""
        while not self.done:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(0.002)


def main(folder: Path) -> None:
    """Make the source where it isn't there, convert it to every target, and say what each took."""
    source = folder / "source"
    if not source.exists():
        export_model_folder(create_model(SOURCE_NAME), source, preprocess=PreprocessSpec(), class_names=None)
        print(f"made {source}; run again, so that making it doesn't count")
        return
    base = anonymous_mb()
    for target in TARGETS:
        watch = Peak()
        watch.start()
        start = time.perf_counter()
        report = convert_checkpoint(source, folder / target, to=target, verify=False, overwrite=True)
        seconds = time.perf_counter() - start
        watch.done = True
        watch.join()
        sizes = [torch.Size(row.shape).numel() * getattr(torch, row.dtype).itemsize for row in report.tensors]
        limit = 1.3 * max(sizes) / 2**20 + 300
        print(
            f"{target:<12} {sum(sizes) / 2**20:7.0f} MB of weights in {seconds:5.1f} s, "
            f"{watch.peak - base:6.0f} MB above {base:.0f} MB (promised: {limit:.0f} MB)"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir()) / "vit_finetune_convert_memory")
