"""What holds for every test: no network, and nothing written to the caches of the person who runs them."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname()}


def pytest_configure(config: pytest.Config) -> None:
    """Keep Hugging Face's caches and ours in a folder that is removed at the end, in processes that tests start too.

    The libraries read these variables when they are imported, so it is done before any test is.
    """
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN"):
        os.environ.pop(name, None)
    folder = tempfile.TemporaryDirectory(prefix="hf_home_")
    os.environ["HF_HOME"] = folder.name
    os.environ["VIT_FINETUNE_CACHE"] = str(Path(folder.name) / "vit_finetune")
    config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing but this machine be reached: other addresses fail at once, as on a machine without a network."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_locally(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            raise ConnectionRefusedError(f"tests are offline: {address}")
        connect(self, address)

    def look_up_locally(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in _LOCAL:
            raise socket.gaierror(socket.EAI_NONAME, f"tests are offline: {host}")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_locally)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Forget the device and precision of a test's run, which Accelerate keeps for every later one of the process."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _nothing_added() -> Iterator[None]:
    """Take back the metrics and tuning modes that a test registered: they hold for a process."""
    yield
    added = sys.modules.get("vit_finetune.common.additions")
    if added is not None:
        added.ADDED_METRICS.clear()
        added.ADDED_TUNING_MODES.clear()
