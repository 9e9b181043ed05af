"""A body that is too large is refused while it arrives, not after."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _TooMuch(Exception):  # noqa: N818 - never leaves this module
    """The body went over the limit."""


class BodyLimit:
    """ASGI middleware that answers 413 as soon as a body is known to be too large.

    A declared length is believed when it is too large, and never when it is small: the bytes are counted.

    Args:
        app: what it stands before.
        max_bytes: the largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its body counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = {"error": f"the request is larger than {self.max_bytes / 1e6:g} MB"}
        refusal = JSONResponse(told, 413, headers={"Connection": "close"})
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_bytes:
            await refusal(scope, receive, send)
            return
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.max_bytes:
                raise _TooMuch
            return message

        async def answered(message: Message) -> None:
            if count <= self.max_bytes:  # what the application makes of the cut body is of no interest
                await send(message)

        with suppress(_TooMuch):
            await self.app(scope, counted, answered)
        if count > self.max_bytes:
            await refusal(scope, receive, send)
