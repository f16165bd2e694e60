"""A small web server on loopback, with what the demo's workers fetch: readings of this machine, and a broken export."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPORT = "sensor,value\ncpu,12.5\nmemory,n/a\ndisk,71.3\n"  # its third line is why `broken-import` never succeeds


def readings() -> list[dict[str, str | float]]:
    """Measure this machine: how busy its processors are, how full its memory and its disk, in percent."""
    return [
        {"sensor": "cpu", "value": psutil.cpu_percent()},
        {"sensor": "disk", "value": psutil.disk_usage("/").percent},
        {"sensor": "memory", "value": psutil.virtual_memory().percent},
    ]


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with one of the two pages."""
        if self.path == "/readings.json":
            self._answer(200, "application/json", json.dumps({"readings": readings()}))
        elif self.path == "/export.csv":
            self._answer(200, "text/csv", _EXPORT)
        else:
            self._answer(404, "text/plain", "no such page\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the demo's own view says what happens."""


@contextlib.contextmanager
def open_site() -> Iterator[tuple[str, int]]:
    """Serve on a free port of loopback; gives host and port."""
    psutil.cpu_percent()  # the first answer is always 0: it counts since the call before
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, args=(0.1,), name="demo-site", daemon=True).start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        server.server_close()
