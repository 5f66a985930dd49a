"""MLflow servers that fail: one that is killed, and a proxy that answers 503, hangs or is slow."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tracking import server


class Mortal:
    """A real server on one port over one database, killed and started again."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri, self._folder = uri, folder
        self._port = server.free_port()
        self._stack = ExitStack()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        life = server.running(self._uri, self._folder, port=self._port)
        self._running = self._stack.enter_context(life)

    def close(self) -> None:
        """Stop it, if it lives."""
        self._stack.close()

    def kill(self) -> None:
        os.killpg(self._running.process.pid, signal.SIGKILL)
        self._running.process.wait()
        self.close()


class Proxy:
    """`mode` is one of pass, slow, refuse (503), hang (no answer); `requests` counts all.

    A slow one passes every request on at once and answers `delay` seconds later, so that a client
    with less patience sends again what was done already.
    """

    def __init__(self, upstream: str, mode: str, delay: float = 0.0) -> None:
        self.delay = delay
        self.upstream = upstream
        self.mode = mode
        self.requests = 0
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                proxy.requests += 1
                while proxy.mode == "hang" and not proxy._closing.is_set():
                    time.sleep(0.05)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, answer = (
                    (503, {}, b"down") if proxy.mode == "refuse" else self._forward(body)
                )
                if proxy.mode == "slow":
                    proxy._closing.wait(proxy.delay)
                with contextlib.suppress(ConnectionError):  # the client has given up
                    self._answer(status, headers, answer)

            def _answer(self, status: int, headers: dict[str, str], answer: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                request = urllib.request.Request(  # noqa: S310  (our own server)
                    proxy.upstream + self.path, body or None, headers, method=self.command
                )
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                        kind = answer.headers.get("Content-Type", "")
                        return answer.status, {"Content-Type": kind}, answer.read()
                except urllib.error.HTTPError as error:
                    return error.code, {"Content-Type": "application/json"}, error.read()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler
