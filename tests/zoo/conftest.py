"""A real HTTP server on the loopback, with the faults that real ones have."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import http.server
import re
import threading
import time
import types

import pytest

from od_finetune.zoo import download


@dataclasses.dataclass
class Served:
    """One file, and how the server misbehaves about it."""

    content: bytes
    etag: str = '"1"'
    last_modified: float | None = None  # seconds since 1970
    ranges: bool = True
    breaks: list[int] = dataclasses.field(default_factory=list)  # bytes sent by the next answers, then all of it
    refusals: list[int] = dataclasses.field(default_factory=list)  # status codes of the next answers
    promise: int = 0  # added to Content-Length
    length: bool = True  # whether there is a Content-Length
    encoding: str = ""
    gate: threading.Event | None = None  # what the answer waits for


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        served = self.server.files.get(self.path)
        if served is None:
            return self.send_error(404)
        if served.refusals:
            return self.send_error(served.refusals.pop(0))
        if served.gate:
            served.gate.wait(20)
        start = self._start(served)
        if start is None or start >= len(served.content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self._answer(served, start)

    def _start(self, served: Served) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        modified = self._modified(served)
        same = self.headers.get("If-Range") in (None, *filter(None, (served.etag, modified)))
        return int(asked[1]) if asked and served.ranges and same else 0

    def _modified(self, served: Served) -> str:
        return email.utils.formatdate(served.last_modified, usegmt=True) if served.last_modified else ""

    def _answer(self, served: Served, start: int) -> None:
        body = served.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
        for key, value in (
            ("Content-Length", str(len(body) + served.promise) if served.length else ""),
            ("ETag", served.etag),
            ("Last-Modified", self._modified(served)),
            ("Content-Encoding", served.encoding),
        ):
            if value:
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: served.breaks.pop(0)] if served.breaks else body)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server():
    """The server: `files` (Served by path), `requests` ((path, headers) of each so far), `url`."""
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http_server.files, http_server.requests = {}, []
    http_server.url = f"http://127.0.0.1:{http_server.server_port}"
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with contextlib.closing(http_server.socket):
        yield http_server
        http_server.shutdown()
    thread.join()


@pytest.fixture
def serve(server):
    """`serve(path, content, **faults)` -> the Served, which may be changed meanwhile."""

    def add(path: str, content: bytes, **faults) -> Served:
        server.files[path] = Served(content, **faults)
        return server.files[path]

    return add


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that were waited between attempts, in no time."""
    seconds = []
    clock = types.SimpleNamespace(sleep=seconds.append, monotonic=time.monotonic)
    monkeypatch.setattr(download, "time", clock)
    return seconds
