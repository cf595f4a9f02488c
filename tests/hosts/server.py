"""A CI host on the loopback.

It is a real HTTP server which remembers, refuses what the real one refuses, and fails on demand.

    with FakeBitbucket() as host:
        host.fault(("POST", r"/statuses/"), status(429, retry_after=1), cut())
        ...
        assert host.refused == []

What a host stores is changed under one lock, so a test may look at it while requests come in.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NoReturn, Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.hosts.exchange import REASONS, Answer, Fault, Recorded, RefusedError, Request

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT")


@dataclass(frozen=True)
class Route:
    """Requests of one method whose path fits a template such as "/repos/{owner}/{repo}"."""

    method: str
    template: str
    serve: Callable[..., Answer]

    def parts(self, path: str) -> dict[str, str] | None:
        """The text in the place of each name, decoded; None where the path is another one."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.template))
        match = re.fullmatch(pattern, path)
        return (
            None
            if match is None
            else {name: unquote(value) for name, value in match.groupdict().items()}
        )


class Host(ABC):
    """Base of all hosts; each adds the requests that it serves and its words for a refusal."""

    endpoints: ClassVar[tuple[str, ...]] = ("direct",)

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.refused: list[str] = []
        self._faults: list[tuple[str | None, re.Pattern[str], list[Fault]]] = []
        self._servers: dict[str, _Server] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._serial = 0

    def start(self) -> Self:
        """Listen on a free port for each endpoint."""
        self._closing.clear()
        for endpoint in self.endpoints:
            server = self._servers[endpoint] = _Server(self, endpoint)
            server.loop.start()
        return self

    def close(self) -> None:
        """Leave no thread and no port behind, whatever is still being answered.

        A second time is quiet.
        """
        self._closing.set()
        for server in self._servers.values():
            server.stop()
        self._servers.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address of the server, without a slash at the end."""
        return self.address("direct")

    def address(self, endpoint: str) -> str:
        return f"http://127.0.0.1:{self._servers[endpoint].server_port}"

    def fault(self, match: tuple[str | None, str], *faults: Fault) -> None:
        """Let the next requests meet these faults, one each.

        It holds for requests of this method (None: any) whose path, with its query, matches.
        """
        with self._lock:
            self._faults.append((match[0], re.compile(match[1]), list(faults)))

    def seen(self, method: str | None = None, path: str = "") -> list[Recorded]:
        """The requests of this method (None: any), oldest first.

        Their path, with its query, matches this regex.
        """
        with self._lock:
            return [
                r for r in self.requests if method in (None, r.method) and re.search(path, r.path)
            ]

    # What each host says for itself.

    @abstractmethod
    def routes(self) -> Iterable[Route]: ...

    @abstractmethod
    def error(self, code: int, message: str) -> Answer:
        """An error in the shape that this host gives most of its errors."""

    @abstractmethod
    def admit(self, request: Request) -> None:
        """Refuse who may not come in at all; asked for a request that meets a fault, too."""

    # What they use.

    def refuse(self, answer: Answer, words: str) -> NoReturn:
        raise RefusedError(answer, words)

    def complain(self, request: Request, words: str) -> None:
        """Note a violation that the real host would let pass."""
        self.refused.append(f"{request.target}: {words}")

    def loaded(self, request: Request) -> Any:
        """The body, which has to be JSON and to say so."""
        kind = request.headers.get("content-type", "")
        if not re.match(r"application/([\w.]+\+)?json\b", kind):
            self.refuse(
                self.error(415, "Unsupported Media Type"),
                f"the body is JSON and its content type is {kind or 'missing'}",
            )
        try:
            return json.loads(request.content, parse_constant=_no_constant)
        except ValueError as error:
            self.refuse(self.error(400, "Problems parsing JSON"), f"the body is not JSON: {error}")

    def number(self, request: Request, name: str, default: int, most: int) -> int:
        """A number of the query, at least 1."""
        text = request.query.get(name, str(default))
        if not text.isdecimal() or not 1 <= int(text) <= most:
            self.refuse(self.error(400, f"Invalid {name}"), f"{name} is {text}, not 1 to {most}")
        return int(text)

    def serial(self) -> int:
        """A number not given before."""
        self._serial += 1
        return self._serial

    def now(self) -> str:
        """A time later than the last one that was given, the same in every run."""
        return (
            (datetime(2026, 11, 2, 9, tzinfo=UTC) + timedelta(seconds=self.serial()))
            .isoformat()
            .replace("+00:00", "Z")
        )

    # What the server calls.

    def respond(self, request: Request, raw_path: str) -> tuple[Answer | None, Fault]:
        """The answer, None for none at all, and the way in which to send it."""
        with self._lock:
            fault = self._next_fault(request.method, raw_path)
        if self._closing.wait(fault.wait_s):
            return None, fault
        with self._lock:
            served = self._answer(request, fault)
            answer = None if fault.cut_after == -1 else served
            code = 0 if answer is None else answer.status
            self.requests.append(
                Recorded(
                    request.method, raw_path, request.headers, _readable(request), code, request.via
                )
            )
        return answer, fault

    def pause(self, seconds: float) -> bool:
        """Wait; False when the host closes meanwhile."""
        return not self._closing.wait(seconds)

    def _next_fault(self, method: str, path: str) -> Fault:
        for expected, pattern, faults in self._faults:
            if faults and expected in (None, method) and pattern.search(path):
                return faults.pop(0)
        return Fault()

    def _answer(self, request: Request, fault: Fault) -> Answer:
        try:
            self._sound(request)
            self.admit(request)
            if fault.code:
                plain = self.error(fault.code, REASONS.get(fault.code, "Error"))
                body = plain.body if fault.body is None else fault.body
                return Answer(fault.code, body, {**plain.headers, **fault.headers})
            return self._served(request) if fault.served else Answer(0)
        except RefusedError as refused:
            if refused.words:
                self.complain(request, refused.words)
            return refused.answer
        except Exception as error:  # noqa: BLE001 - a fault of the fake is an answer, and refused
            self.complain(request, f"the fake itself failed: {error!r}")
            return self.error(500, "the fake itself failed")

    def _sound(self, request: Request) -> None:
        if match := re.search(r"[^!-~]|[{}<>\"\\^`|]", request.path):
            self.refuse(
                self.error(400, "Bad Request"),
                f"{match.group()!r} in the path, which has to be percent-encoded",
            )
        if request.headers.get("transfer-encoding"):
            self.refuse(self.error(411, "Length Required"), "a body without Content-Length")

    def _served(self, request: Request) -> Answer:
        other = False
        for route in self.routes():
            parts = route.parts(request.path)
            if parts is not None and route.method == request.method:
                return route.serve(request, **parts)
            other = other or parts is not None
        if other:
            raise RefusedError(self.error(405, "Method Not Allowed"), "no such method here")
        raise RefusedError(self.error(404, "Not Found"), "no such address")


def basic(header: str) -> tuple[str, str] | None:
    """User and password of an Authorization header; None where it holds no such two."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _readable(request: Request) -> Any:
    text = request.content.decode("utf-8", "replace")
    if "json" in request.headers.get("content-type", ""):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text


class _Server(ThreadingHTTPServer):
    """One endpoint of a host; knows its connections and threads, to end them all."""

    daemon_threads = True  # a test that forgets to close does not hang its process
    allow_reuse_address = False

    def __init__(self, host: Host, endpoint: str) -> None:
        self.host, self.endpoint = host, endpoint
        self._open: set[socket.socket] = set()
        self._answering: list[threading.Thread] = []
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.loop = threading.Thread(
            target=self.serve_forever,
            kwargs={"poll_interval": 0.01},
            name=f"fake host, {endpoint}",
            daemon=True,
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._guard:
            self._open.add(request)
            self._answering = [*(t for t in self._answering if t.is_alive()), thread]
            thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client may hang up when it likes
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.loop.join()
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._answering:
            thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Turns bytes into a `Request`, and an `Answer` into bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        server = cast(_Server, self.server)
        target = urlsplit(self.path) if self.command != "CONNECT" else urlsplit("//" + self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            method=self.command,
            path=target.path,
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            headers=headers,
            content=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            via=server.endpoint,
            origin=f"{target.scheme}://{target.netloc}" if target.netloc else "",
        )
        answer, fault = server.host.respond(
            request, target.path + (f"?{target.query}" if target.query else "")
        )
        if answer is None:
            self.close_connection = True
        else:
            self._send(answer, fault, server.host)

    def _send(self, answer: Answer, fault: Fault, host: Host) -> None:
        kind, content = answer.encoded()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if kind and "Content-Type" not in answer.headers:
            self.send_header("Content-Type", kind)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(content)))
        if answer.status >= 400 or fault != Fault():
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        for piece in _pieces(content, fault):
            if fault.pause_s and not host.pause(fault.pause_s):
                return
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _pieces(content: bytes, fault: Fault) -> Iterable[bytes]:
    content = content[: fault.cut_after]
    if not fault.pause_s:
        return [content]
    return [content[index : index + 1] for index in range(len(content))]


for _method in METHODS:
    setattr(_Handler, f"do_{_method}", _Handler.serve)
