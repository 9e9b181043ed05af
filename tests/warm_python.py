"""An interpreter that has imported everything once and forks: `python -m vit_finetune` without the seconds of imports.

`warm_python()` names an executable to use in the place of `sys.executable`. It is a client (warm_client.py) that hands
its arguments, folder, environment and streams to a server, which forks a process that runs the module as `__main__`.
Signals are passed on, and the client ends as that process does; killed itself, it takes it along. Launchers in such a
process start clients again, so several processes cost no interpreter either.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from warm_client import START_IT_YOURSELF

# Sent to a client, it kills what runs for it with SIGKILL, and the client ends in the same way.
KILL = signal.SIGUSR2 if sys.platform.startswith("linux") else signal.SIGKILL
# What a run imports on its way.
_WARM = (
    *("vit_finetune.cli", "vit_finetune.finetune", "vit_finetune.evaluation.explain", "torch._dynamo", "torch.fx"),
    *("torch.distributed.launcher.api", "torch.distributed.run", "accelerate", "datasets", "timm", "pandas", "jinja2"),
    *("rich.progress", "rich.table", "psutil", "safetensors.torch", "torchvision.transforms.v2"),
)
# What is read when modules are imported: where a process wants it otherwise, it gets an interpreter of its own.
_READ_EARLY = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_", "HOME", "PYTHON", "LD_", "TORCH_HOME", "MKL_", "KMP_")


@functools.cache
def warm_python() -> str:
    """Return the client's path; the server starts with the first call and ends with this process."""
    if not sys.platform.startswith("linux"):
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="warm_"))
    client, address = folder / "python", folder / "socket"
    script = Path(__file__).with_name("warm_client.py")
    client.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{script}" "{address}" "$@"\n')
    client.chmod(0o755)
    command = [sys.executable, __file__, str(address), str(client)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"

    def stop(stdin=server.stdin) -> None:
        stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(stop)
    return str(client)


def serve(address: str) -> list[str] | None:
    """Fork a keeper for each client; return the arguments in a process that is to run them, None at the end."""
    for name in _WARM:
        importlib.import_module(name)
    gc.freeze()
    early = _early(os.environ)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if listener not in ready:
            return None
        client, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return keep(client, early)
        client.close()


def keep(client: socket.socket, early: dict[str, str]) -> list[str]:
    """Fork the process that a client wants; stay between both, and return its arguments in that process only."""
    head, streams, _, _ = socket.recv_fds(client, 4, 3)
    length, request = int.from_bytes(head, "big"), b""
    while len(request) < length:
        request += client.recv(length - len(request))
    folder, count, *rest = request.decode(errors="surrogateescape").split("\0")
    arguments, variables = rest[: int(count)], rest[int(count) :]
    environment = dict(line.split("=", 1) for line in variables)
    if _early(environment) != early:
        client.sendall(START_IT_YOURSELF.to_bytes(4, "big"))
        os._exit(0)
    worker = os.fork()
    if worker == 0:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return arguments
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(worker)
    while True:
        ready, _, _ = select.select([client, ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            client.sendall(code.to_bytes(4, "big", signed=True))
            os._exit(0)
        given = client.recv(1)
        os.kill(worker, given[0] if given and given[0] != KILL else signal.SIGKILL)
        if not given:
            os._exit(0)


def run(arguments: list[str]) -> None:
    """Be `python ARGUMENTS`, which are [-u] -m MODULE ..."""
    import numpy as np
    import torch

    if arguments[0] == "-u":
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)
    assert arguments[0] == "-m", arguments
    random.seed()
    np.random.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))))
    sys.executable, sys.argv = sys.argv[2], arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def _early(environment) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_EARLY)}


def leave(code: int) -> None:
    """End this process with all that is done at an exit, but without taking apart what was imported."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    wanted = serve(sys.argv[1])
    if wanted is not None:
        try:
            run(wanted)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        leave(0)
