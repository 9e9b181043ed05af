"""A small server that speaks as much of the Hub's API as sending a model takes, and keeps what it was sent.

It takes every file inside the commit. How large ones travel (Git LFS, Xet) is between huggingface_hub and the real Hub.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from hub_server import REVISION, Hub


class ModelHub(Hub):
    """Answers about models, of which there are none at first."""

    repositories: dict[str, dict[str, bytes]]
    private: dict[str, bool]
    refuses_writing: bool

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        """Answer about a repository."""
        path = self.path.partition("?")[0]
        name = match[1] if (match := re.match(r"/api/models/([^/]+/[^/]+)", path)) else ""
        if name not in self.repositories:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return
        files = self.repositories[name]
        if "/tree/" in path:
            entries = [{"type": "file", "path": each, "oid": "a" * 40, "size": len(files[each])} for each in files]
            self._json(entries)
            return
        about = {"id": name, "sha": REVISION, "private": self.private[name], "tags": [], "downloads": 0, "likes": 0}
        self._json({**about, "siblings": [{"rfilename": each} for each in files]})

    do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

    def do_POST(self) -> None:
        """Make a repository, say how a file is to be sent, or take a commit."""
        body = self._body()
        if self.refuses_writing:
            self._json({"error": "Forbidden"}, 403)
            return
        host = f"http://127.0.0.1:{self.server.server_address[1]}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {})
            self.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
            self._json({"url": f"{host}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self._json(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked]}
            )
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(self.repositories[name], body)
            self._json({"commitUrl": f"{host}/{name}/commit/{REVISION}", "commitOid": REVISION, "hookOutput": ""})
        else:
            self._json({}, 404)

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])


@contextmanager
def model_hub() -> Iterator[tuple[str, type[ModelHub]]]:
    """Serve an empty hub; yield its address and what it holds."""
    kind = type("Served", (ModelHub,), {"repositories": {}, "private": {}, "refuses_writing": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kind
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
