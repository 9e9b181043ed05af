"""A service on a free port, run as its users run it: in a process of its own, by the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run_helpers import ROOT


@contextmanager
def running_service(model: Path, *options: str) -> Iterator[str]:
    """Yield the address of `vit-finetune serve MODEL --port 0`; it is ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vit_finetune", "serve", str(model), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + process.stdout.read()
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=30)
