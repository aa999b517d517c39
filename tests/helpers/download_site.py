"""A local server of files that serves well, badly or not at all."""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from metarun.data import fetch as module

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
PAGE = b"<!doctype html><html><body>Sign in to the network</body></html>"


@dataclass
class Source:
    """What one address does, and what was asked of it."""

    content: bytes = CONTENT
    ranges: bool = True  # or it sends all, whatever was asked for
    most: int | None = None  # bytes of one answer, then the line breaks
    breaks: str = "end"  # how: end, reset, hang
    length: bool = True  # Content-Length, of the whole answer
    status: int | None = None  # an error
    moved: str | None = None  # to another path
    later: Source | None = None  # from the second request on
    asked: list[str | None] = field(default_factory=list)  # the ranges
    sent: int = 0


class Site:
    """http://127.0.0.1:PORT with a source at each path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.sources: dict[str, Source] = {}
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, **behaviour: Any) -> tuple[str, Source]:
        """Another address."""
        source = Source(**behaviour)
        if source.breaks == "hang":
            self.monkeypatch.setattr(module, "TIMEOUT", 0.3)
        path = f"/{len(self.sources)}/a.zip"
        self.sources[path] = source
        return self.at(path), source

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        source = self.sources[handler.path]
        source.asked.append(handler.headers.get("Range"))
        behaviour = source.later if source.later and len(source.asked) > 1 else source
        start = int((source.asked[-1] or "bytes=0-")[6:-1]) if behaviour.ranges else 0
        if behaviour.status or start >= len(behaviour.content):
            handler.send_error(behaviour.status or 416)
            return
        handler.send_response(302 if behaviour.moved else 206 if start else 200)
        if behaviour.moved:
            handler.send_header("Location", behaviour.moved)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(behaviour.content) - 1}/{len(behaviour.content)}")
        body = b"" if behaviour.moved else behaviour.content[start:]
        if behaviour.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        source.sent += len(body[: behaviour.most])  # before the client can have it and look
        handler.wfile.write(body[: behaviour.most])
        if behaviour.most is not None and behaviour.most < len(body):
            self.break_off(handler, behaviour.breaks)

    def break_off(self, handler: BaseHTTPRequestHandler, how: str) -> None:
        if how == "hang":
            self.closing.wait(20)
        if how == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
