"""An HTTP proxy between a client and a store that makes trouble, the same for the same seed."""

from __future__ import annotations

import http.client
import http.server
import random
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from typing import Any

# What may happen to a request. It reaches the store in the last three cases alone.
FAULTS = ("slow down", "reset", "reset after", "truncated")

_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code><Message>No such key.</Message></Error>"


class FaultsProxy:
    """Stands before `endpoint` and troubles a share of the requests, a few times each.

    Whether a request is troubled, and how, is drawn from the seed, its method, its path and how
    often it was made: no order of threads changes it. After `at_most` faults it goes through.
    `missing` are paths, `/bucket/key`, that are answered with 404; `busy` counts for a path how many
    more requests are answered with 503. `held` says for a method and a
    path whether the request waits until `release`.
    """

    def __init__(
        self, endpoint: str, *, share: float = 0.0, at_most: int = 3, seed: int = 0
    ) -> None:
        self._store = urllib.parse.urlsplit(endpoint).netloc
        self._share, self._at_most, self._seed = share, at_most, seed
        self._lock = threading.Condition()
        self._tries: Counter[tuple[str, str]] = Counter()
        self._released = threading.Event()
        self.missing: set[str] = set()
        self.busy: Counter[str] = Counter()
        self.held: Callable[[str, str], bool] = lambda method, path: False
        self.faults: Counter[str] = Counter()
        self.done: list[tuple[str, str]] = []  # method and path of what the store answered

        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy._answer(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that was killed

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> FaultsProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def release(self) -> None:
        """Let go what is held, and hold nothing any more."""
        self._released.set()

    def wait_for(self, method: str, holds: Callable[[str], bool], count: int = 1) -> None:
        """Return when the store has answered so many requests for paths that `holds` says yes to."""
        deadline = time.monotonic() + 300
        with self._lock:
            while sum(verb == method and holds(path) for verb, path in self.done) < count:
                assert self._lock.wait(deadline - time.monotonic()), "the requests did not come"

    def _fault(self, method: str, path: str) -> str | None:
        with self._lock:
            if self.busy[urllib.parse.unquote(path)] > 0:
                self.busy[urllib.parse.unquote(path)] -= 1
                return "slow down"
            self._tries[method, path] += 1
            count = self._tries[method, path]
            draw = random.Random(f"{self._seed} {method} {path} {count}")
            if count > self._at_most or draw.random() >= self._share:
                return None
            fault = draw.choice(FAULTS)
            self.faults[fault] += 1
            return fault

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        method, path = request.command, urllib.parse.unquote(request.path.partition("?")[0])
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if self.held(method, path):
            self._released.wait()
        if path in self.missing:
            self.faults["missing"] += 1
            return _send(request, 404, _NO_SUCH_KEY)
        fault = self._fault(method, request.path)
        if fault == "slow down":
            return _send(request, 503, _SLOW_DOWN)
        if fault == "reset":
            return _reset(request)
        try:
            status, headers, data = self._ask(request, body)
        except (OSError, http.client.HTTPException):  # the store is not up
            return _reset(request)
        if fault == "reset after":
            return _reset(request)
        if fault == "truncated" and method != "HEAD" and data:
            _send(request, status, data[: len(data) // 2], {**headers, "Content-Length": len(data)})
            return _reset(request, gently=True)
        _send(request, status, data, headers)
        with self._lock:
            self.done.append((method, path))
            self._lock.notify_all()
        return None

    def _ask(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, Any], bytes]:
        connection = http.client.HTTPConnection(self._store, timeout=60)
        try:
            # As it is, with the Host that the client has signed.
            connection.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}
            }
            length = answer.getheader("Content-Length") or len(data)
            return answer.status, {**headers, "Content-Length": length}, data
        finally:
            connection.close()


def _send(
    request: http.server.BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, Any] | None = None,
) -> None:
    request.send_response_only(status)
    for name, value in (headers or {"Content-Length": len(body)}).items():
        if not (status == 204 and name == "Content-Length"):
            request.send_header(name, str(value))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _reset(request: http.server.BaseHTTPRequestHandler, gently: bool = False) -> None:
    """Break the connection: by an RST, or gently, so that what was sent before arrives."""
    request.close_connection = True
    if not gently:
        linger = struct.pack("ii", 1, 0)
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.connection.close()
