"""Stands for an interpreter: hands its arguments, streams and signals to warm_python.py, and ends as what ran there."""

import os
import signal
import socket
import sys

START_IT_YOURSELF = 1000


def main() -> None:
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[1])
    arguments = sys.argv[2:]
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    parts = [os.path.realpath(os.curdir), str(len(arguments)), *arguments, *environment]
    request = "\0".join(parts).encode(errors="surrogateescape")
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda given, _: server.send(bytes([given])))
    code = int.from_bytes(server.recv(4) or (70).to_bytes(4, "big"), "big", signed=True)
    if code == START_IT_YOURSELF:
        os.execv(sys.executable, [sys.executable, *arguments])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
