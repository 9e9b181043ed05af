"""A small prediction service over HTTP: one finished model, a page to drop a picture on, JSON for programs.

The web framework is an extra; nothing of it is imported before `serve` is called.
"""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vit_finetune.common.errors import RequestError
from vit_finetune.serve.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_finetune.predictor import Predictor

__all__ = ["Limits", "require_serve", "serve"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def require_serve() -> None:
    """Say which extra is missing.

    Raises:
        RequestError: the web framework is not installed.
    """
    if any(find_spec(name) is None for name in _NEEDED):
        raise RequestError(f"serving needs {', '.join(_NEEDED)}; install them with: pip install 'vit-finetune[serve]'")


def serve(
    predictor: Predictor,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer requests until the process is told to stop.

    Args:
        predictor: the model.
        name: what the page calls it.
        host: the address to listen on; the default answers this machine only. There is no log-in and no encryption:
            put a proxy that has both before any other address.
        port: from 0 to 65535; 0 takes a free one.
        limits: what a request may ask for; None takes the defaults.
        ready: told the address once requests are taken.

    Raises:
        RequestError: the extra is missing, or the address cannot be listened on.
    """
    require_serve()
    import uvicorn

    from vit_finetune.serve.service import create_app

    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    allowed = [*_LOOPBACK[:2], "[::1]"] if host in _LOOPBACK else ["*"]
    app = create_app(predictor, name=name, limits=limits or Limits(), allowed_hosts=allowed)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=5, server_header=False)
    if ready is not None:  # the socket listens already: whoever comes now is answered a moment later
        ready(f"http://{shown}:{listener.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise RequestError(f"cannot listen on {host} port {port} ({error}); give another --host or --port") from error
    return listener
