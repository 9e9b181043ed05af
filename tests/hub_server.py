"""A small server that speaks as much of the Hub's API as reading a data set takes: `python hub_server.py FOLDER`.

It serves the folder as the data set someone/birds, prints its port, and then one line `PATH FIRST LAST` for every range
of a file that it sends.
"""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "someone/birds"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers about one data set."""

    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": REVISION, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _entry(self, path: Path) -> dict[str, object]:
        kind = "file" if path.is_file() else "directory"
        name = path.relative_to(self.root).as_posix()
        return {"type": kind, "path": name, "oid": "a" * 40, "size": path.stat().st_size}

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            folder = self.root / path.partition("/tree/")[2].partition("/")[2]
            entries = [self._entry(each) for each in sorted(folder.iterdir())]
            self._send(json.dumps(entries).encode(), Content_Type="application/json")
        elif path.startswith(f"/api/datasets/{NAME}"):
            files = [{"rfilename": self._entry(each)["path"]} for each in self.root.rglob("*") if each.is_file()]
            about = {"id": NAME, "sha": REVISION, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self._send(json.dumps({**about, "siblings": files}).encode(), Content_Type="application/json")
        elif match := re.match(rf"/datasets/{NAME}/resolve/[^/]+/(.*)", path):
            self._file(match[1])
        else:
            self._send(b"{}", 404)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server asks for

    def _file(self, name: str) -> None:
        if not (self.root / name).is_file():
            self._send(b"", 404, X_Error_Code="EntryNotFound")
            return
        data = (self.root / name).read_bytes()
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]), len(data) - 1) if asked and asked[2] else len(data) - 1
        if self.command == "GET":
            print(name, first, last, flush=True)
        about = {"ETag": '"0"', "Accept_Ranges": "bytes", "Content_Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(data[first : last + 1], 206 if asked else 200, **about)


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_address[1], flush=True)
    server.serve_forever()
