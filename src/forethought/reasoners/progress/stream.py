"""Progress as a stream of server-sent events, and the one page that draws it; for this machine only.

``GET /`` is the page; ``GET /events?question=…`` answers with ``text/event-stream``: an event a token with ``token``,
``text``, ``fraction``, ``low``, ``high``, ``eta_tokens``, ``phase``, ``closed`` and ``source`` (see
:class:`~forethought.reasoners.progress.watching.Event`), at the end one event named ``done``, and one named ``error``
where the question cannot be answered. One thought goes on at a time; a few may wait.
Pages of other sites are refused, and so are more connections than a few browsers need.
"""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from forethought.errors import ArtefactError, ForethoughtError
from forethought.reasoners.progress.watching import Ending, Watcher, plain

PAGE = Path(__file__).with_name("page.html")
ADDRESS = "127.0.0.1"
LONGEST_TARGET = 16_384  # bytes of path and query
LONGEST_QUESTION = 4_000  # characters
CONNECTIONS = 32  # at once; a browser holds a few, and opens some that it may never use
WAITING = 4  # questions beside the one that is being answered
_PATIENCE = 30.0  # seconds for a request to arrive, and for a reader to take what is sent
_FULL = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ProgressServer(ThreadingHTTPServer):
    """Serves one watcher on 127.0.0.1.

    Args:
        watcher: who thinks and what reads it.
        port: 0 for any that is free.
        waiting: questions that may wait; more are refused with 503.

    Raises:
        ArtefactError: the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, watcher: Watcher, port: int = 0, *, waiting: int = WAITING) -> None:
        self.watcher = watcher
        self.stopped = threading.Event()
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        self.places = threading.BoundedSemaphore(1 + waiting)
        self.thinking = threading.Lock()
        self.page = PAGE.read_bytes()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ArtefactError(
                f"Port {port} of {ADDRESS} cannot be served on: {reason}; choose another with --sse."
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread a connection, and no more of them than are allowed at once."""
        if not self.connections.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(_FULL)
            return self.shutdown_request(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error to print; anything else is."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def serve(self) -> None:
        """Until ctrl-C; a thought that is going on is given up."""
        try:
            self.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """End the thought that is going on, and give the port back."""
        self.stopped.set()
        with self.thinking:  # the hook is off the model when this returns
            pass
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ProgressServer
    server_version, sys_version = "forethought", ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        if not self._is_local():
            return self._refuse(403, f"This server answers to {ADDRESS} and localhost only.")
        if not self._is_own():
            return self._refuse(403, "This server answers its own page, and no page of another site.")
        if len(self.path) > LONGEST_TARGET:
            return self._refuse(414, f"The address is longer than {LONGEST_TARGET} bytes.")
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            return self._refuse(413, "A GET request has no body here.")
        try:
            target = urlsplit(self.path)
        except ValueError:
            return self._refuse(400, "The address is none.")
        if target.path == "/":
            return self._send(200, "text/html; charset=utf-8", self.server.page)
        if target.path != "/events":
            return self._refuse(404, "There is / and /events?question=….")
        if "Last-Event-ID" in self.headers:
            # a browser that lost the stream asks again by itself; 204 tells it not to, lest the model think once more
            return self._send(204, "text/plain", b"")
        try:
            asked = parse_qs(target.query, max_num_fields=8).get("question", [""])
        except ValueError:
            return self._refuse(400, "Give one question.")
        question = asked[0].strip()
        if len(asked) != 1 or not question:
            return self._refuse(400, "Give one question, as /events?question=….")
        if len(question) > LONGEST_QUESTION:
            return self._refuse(400, f"The question is longer than {LONGEST_QUESTION} characters.")
        if not self.server.places.acquire(blocking=False):
            return self._refuse(503, "Enough questions are waiting; ask again later.")
        try:
            self._answer(question)
        finally:
            self.server.places.release()

    def _answer(self, question: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._write(f": {self.server.watcher.why()}\n\n")
        while not self.server.thinking.acquire(timeout=1.0):
            self._write(": waiting\n\n")  # fails where nobody listens any more
            if self.server.stopped.is_set():
                return
        try:
            stream = self.server.watcher.stream(question, self.server.stopped.is_set)
            try:
                for number, item in enumerate(stream, start=1):
                    name = "event: done\n" if isinstance(item, Ending) else ""
                    self._write(f"id: {number}\n{name}data: {json.dumps(plain(item))}\n\n")
            except ForethoughtError as error:
                self._write(f"event: error\ndata: {json.dumps({'error': str(error)})}\n\n")
            finally:
                stream.close()  # type: ignore[attr-defined]  # a generator
        finally:
            self.server.thinking.release()

    def _is_local(self) -> bool:
        """Whether the request names this machine; a page elsewhere that points its own name here does not."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        return host in (ADDRESS, "localhost")

    def _is_own(self) -> bool:
        """Whether no page of another site asks: browsers say who does, other programs need not."""
        origin = self.headers.get("Origin")
        own = origin is None or origin == f"http://{self.headers['Host']}"
        return own and self.headers.get("Sec-Fetch-Site") != "cross-site"

    def _write(self, text: str) -> None:
        self.wfile.write(text.encode())
        self.wfile.flush()

    def _refuse(self, status: int, sentence: str) -> None:
        self.close_connection = True
        self._send(status, "application/json", json.dumps({"error": sentence}).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the user, and questions are nobody's business."""
