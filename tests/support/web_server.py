"""Servers of the web on this machine: of files that a test gives, and before another server; both fail when told to.

They keep what was asked of them and how many bytes were sent for it.
"""

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "server", "date"}

Fault = int | str | None  # an HTTP status, or `reset`, `cut`, `short`, `stall`; None does not fail


@dataclass
class Asked:
    """A request, and what was sent of the answer's body."""

    method: str
    path: str
    range: str | None
    num_bytes: int = 0


@dataclass
class Answer:
    """What would be sent if nothing failed."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # as told in the header: of the body where it is None; -1: not at all


class Server(ThreadingHTTPServer):
    """A server whose next answers fail as `faults` says, the first first; `spared` are the methods that do not fail."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[["Handler", bytes], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.spared: tuple[str, ...] = ()
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, method: str) -> list[Asked]:
        """The requests of a method."""
        return [each for each in self.asked if each.method == method]

    def fail(self, *faults: Fault, spare: tuple[str, ...] = ()) -> None:
        """The next answers fail so; what was asked before is forgotten."""
        self.asked.clear()
        self.faults[:] = faults
        self.spared = spare

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no matter."""


class Handler(BaseHTTPRequestHandler):
    """Answers any method."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        asked = Asked(self.command, self.path, self.headers.get("range"))
        with self.server.lock:
            self.server.asked.append(asked)
            faults = self.server.faults
            fault = faults.pop(0) if faults and self.command not in self.server.spared else None
        if fault == "stall":
            self.server.stopped.wait(60)
        if fault in ("reset", "stall"):
            self.close_connection = True
            return
        answer = (
            Answer(fault, SLOW_DOWN if fault >= 429 else DENIED)
            if isinstance(fault, int)
            else self.server.answer(self, body)
        )
        if fault == "short":
            answer.body = answer.body[: len(answer.body) // 2]
        self.send(answer, asked, cut=fault == "cut")

    def send(self, answer: Answer, asked: Asked, *, cut: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.body) if answer.length is None else answer.length
        if length >= 0:
            self.send_header("content-length", str(length))
        else:
            self.send_header("connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = answer.body[: len(answer.body) // 2] if cut else answer.body
        for start in range(0, len(body), 1 << 16):  # what a client no longer reads is not counted
            piece = body[start : start + (1 << 16)]
            asked.num_bytes += len(piece)  # before: the client may have it, and look here, before `write` returns
            try:
                self.wfile.write(piece)
            except OSError:
                asked.num_bytes -= len(piece)
                raise
        self.close_connection = self.close_connection or cut

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving_files(
    files: dict[str, bytes], *, ranges: bool = True, length: bool = True, heads: bool = True
) -> Iterator[Server]:
    """A server of files by name.

    Args:
        files: what there is; may change meanwhile.
        ranges: whether a range is answered by no more than the range.
        length: whether the length of an answer is told.
        heads: whether HEAD is answered, which links that are signed for GET refuse.
    """

    def answer(handler: Handler, _body: bytes) -> Answer:
        name = urlsplit(handler.path).path.lstrip("/")
        if handler.command == "HEAD" and not heads:
            return Answer(403)
        if name not in files:
            return Answer(404)
        content = files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("range", ""))
        if wanted is None or not ranges:
            headers = {} if ranges else {"accept-ranges": "bytes"}  # which may be a lie
            return Answer(200, content, headers, length=None if length else -1)
        start, end = int(wanted[1]), int(wanted[2] or len(content)) + 1
        if start >= len(content):
            return Answer(416)
        part = content[start:end]
        return Answer(206, part, {"content-range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"})

    with _running(Server(answer)) as server:
        server.files = files
        yield server


@contextmanager
def standing_before(url: str) -> Iterator[Server]:
    """A server that passes on what is asked of it, and the answers."""

    def answer(handler: Handler, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "expect"}
        connection.request(handler.command, handler.path, body=body or None, headers=headers)
        response = connection.getresponse()
        content = response.read()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in NOT_PASSED_ON}
        length = response.getheader("content-length")
        connection.close()
        return Answer(response.status, content, kept, length=int(length) if length and not content else None)

    with _running(Server(answer)) as server:
        yield server
