"""Readers meet mutated and absurd files: each is read or refused, soon and within bounds; nothing else ever happens.

A file that is read in spite of a mutation is one whose damage no reader can see, such as another bit in a weight. The
work is done by `fuzz_helpers.py` in a process of its own, which a crash would end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 300  # mutations of each kind
KINDS = ("safetensors", "npz", "npz, packed", "torch", "torch, old", "TorchScript", "ONNX")
MOST_MB = 150  # a packed member may unpack to 50 MB, and is copied once


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Fuzz every reader once; the script's docstring says how."""
    script = Path(__file__).parent.parent / "fuzz_helpers.py"
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("fuzz")), str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"the reading process ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_read_source__mutated_files_are_read_or_refused(found, kind):
    """Every mutation ends in a clean load or in one line of `RequestError`; the whole file is read, most aren't."""
    counts = found["mutated"][kind]
    assert set(counts) == {"read", "refused"}, counts
    assert sum(counts.values()) == COUNT
    assert counts["refused"] > COUNT / 2


def test_read_source__absurd_files_are_refused(found):
    """Zip bombs and claims of terabytes are refused, each by its own line, and take no memory."""
    assert len(found["absurd"]) == 9
    assert set(found["absurd"].values()) == {"refused"}


def test_read_source__memory_is_bounded(found):
    """The process that read them all never held much more than what it had imported."""
    assert set(found["mutated"]) == set(KINDS)
    assert found["grown_mb"] < MOST_MB
