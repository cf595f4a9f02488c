"""A real S3 over HTTP, in a process of its own, with a chosen latency and with faults on demand.

moto serves the S3. A thin layer before it answers, delays or drops the requests that a test names,
and counts. A client reaches it as any S3: `AWS_ENDPOINT_URL` and dummy keys, both in
`S3Server.env`.

    with S3Server() as server:
        server.make_bucket("bucket")
        server.throttle(get_s=0.05)
        server.fault("503", times=2, method="PUT")
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Required, TypedDict

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

Fault = Literal["403", "503", "507", "skew", "slow", "drop", "drop-after"]
CONDITIONS = (
    "HTTP_RANGE",
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)
ERRORS = {
    "403": ("403 Forbidden", "AccessDenied"),
    "503": ("503 Slow Down", "SlowDown"),
    "507": ("507 Insufficient Storage", "XMinioStorageFull"),
    "skew": ("403 Forbidden", "RequestTimeTooSkewed"),
}


class S3Server:
    """The server's process, as the test sees it.

    It ends with the `with` block, or when the test's process dies. `host` is the address it listens
    on: the loopback, or this node's address for other machines.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host

    def __enter__(self) -> S3Server:
        command = [sys.executable, str(Path(__file__).resolve()), self.host]
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.endpoint = f"http://{self.host}:{self._send(do='accept')}"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    @property
    def env(self) -> dict[str, str]:
        """Return the variables with which a client reaches this server, and no other."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "dummy-access-key",
            "AWS_SECRET_ACCESS_KEY": "dummy-secret-key",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": self.host,
        }

    def make_bucket(self, name: str) -> None:
        """Create the bucket `name`; a bucket that exists stays as it is."""
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT", data=b"")
        request.add_header("Content-Type", "application/octet-stream")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=10
        ).close()

    def fault(
        self,
        kind: Fault,
        *,
        times: int = 1 << 30,
        method: str = "",
        path: str = "",
        seconds: float = 0,
    ) -> None:
        """Let the next `times` requests of `method` whose path contains `path` fail.

        "slow" answers after `seconds`; "drop" hangs up before the request is served, "drop-after"
        when it has been.
        """
        rule = FaultRule(kind=kind, times=times, method=method, path=path, seconds=seconds)
        self._send(do="fault", rule=rule)

    def throttle(self, *, get_s: float = 0, put_s: float = 0, other_s: float = 0) -> None:
        """Delay every request by these seconds, which simulate the distance of a real S3."""
        waits = {"GET": get_s, "PUT": put_s, "HEAD": other_s, "POST": other_s, "DELETE": other_s}
        self._send(do="throttle", waits=waits)

    def ignore_conditions(self) -> None:
        """Store what is put under a condition, whatever that says, as some servers do."""
        self._send(do="conditions", hold=False)

    def refuse(self) -> None:
        """Refuse connections from now on; the stored objects stay."""
        self._send(do="refuse")

    def heal(self) -> None:
        """Remove all faults, and accept connections."""
        self._send(do="heal")
        self._send(do="accept")

    def requests(self) -> list[str]:
        """Return method and path of every request so far, oldest first."""
        answer = self._send(do="requests")
        assert isinstance(answer, list)
        return answer

    def answers(self) -> list[Answer]:
        """Return every request that was answered so far, in the order of their beginnings."""
        answer = self._send(do="answers")
        assert isinstance(answer, list)
        return sorted((Answer(*each) for each in answer), key=lambda each: each.began)

    def most_at_once(self, method: str) -> int:
        """Return the largest number of requests of `method` that were answered at the same moment.

        The count then starts anew.
        """
        answer = self._send(do="most_at_once", method=method)
        assert isinstance(answer, int)
        return answer

    def first_request(self, path: str) -> float:
        """Return when (unix seconds) a request whose path contains `path` first came; 0 for never.

        Only requests since the last call of this method count.
        """
        answer = self._send(do="first_request", path=path)
        assert isinstance(answer, float)
        return answer

    def _send(self, **command: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Answer(NamedTuple):
    """A request with its answer. Times are in monotonic seconds of this machine."""

    method: str
    path: str  # with the bucket, unquoted
    query: str
    status: int
    began: float
    ended: float


class Command(TypedDict, total=False):
    """One line of the process's stdin.

    `do` selects the command, the other keys are its arguments.
    """

    do: Required[str]
    rule: FaultRule
    method: str
    path: str
    waits: dict[str, float]
    hold: bool


class FaultRule(TypedDict):
    """The next `times` requests of `method`, or of any, whose path contains `path` fail."""

    kind: Fault
    times: int
    method: str
    path: str
    seconds: float


class StoredObject(Protocol):
    """An object in moto's memory, and the headers of its response."""

    @property
    def value(self) -> bytes: ...

    @property
    def response_dict(self) -> Mapping[str, str]: ...


StartResponse = Callable[[str, list[tuple[str, str]]], object]


class _Server:
    """The process itself: one JSON command a line on stdin, each answered with one JSON value."""

    def __init__(self, host: str) -> None:
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from moto.s3.models import s3_backends

        self._s3: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._faults: list[FaultRule] = []
        self._requests: list[str] = []
        self._times: list[float] = []  # unix seconds of each request
        self._answers: list[Answer] = []
        self._queried = 0  # number of requests at the last `first_request`
        self._waits: dict[str, float] = {}
        self._current: Counter[str] = Counter()  # requests being answered, by method
        self._most: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._conditions_hold = True
        self._host = host
        self._port = 0
        self._http: Any = None  # werkzeug's server

    def command(self, command: Command) -> object:
        """Execute a command and return its answer."""
        match command["do"]:
            case "fault":
                self._faults.append(command["rule"])
            case "heal":
                self._faults.clear()
                self._conditions_hold = True
            case "conditions":
                self._conditions_hold = command["hold"]
            case "throttle":
                self._waits = command["waits"]
            case "requests":
                return self._requests
            case "answers":
                return self._answers
            case "first_request":
                return self._first_request(command["path"])
            case "most_at_once":
                return self._most.pop(command["method"], 0)
            case "refuse" if self._http is not None:
                self._http.shutdown()
                self._http.server_close()
                self._http = None
            case "accept" if self._http is None:
                self._listen()
        return self._port

    def _first_request(self, path: str) -> float:
        since, self._queried = self._queried, len(self._requests)
        recent = zip(self._requests[since:], self._times[since:], strict=False)
        return next((moment for line, moment in recent if path in line), 0.0)

    def _listen(self) -> None:
        from moto.moto_server.werkzeug_app import MotoRequestHandler
        from werkzeug.serving import make_server

        class Quiet(MotoRequestHandler):
            def log(self, type: str, message: str, *args: object) -> None:
                pass

        self._http = make_server(
            self._host, self._port, self._serve, threaded=True, request_handler=Quiet
        )
        self._port = self._http.server_port
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._conditions_hold:
            for name in CONDITIONS[1:]:
                environ.pop(name, None)
        method, began, status = environ["REQUEST_METHOD"], time.monotonic(), ["0"]

        def start(line: str, headers: list[tuple[str, str]]) -> object:
            status[0] = line.partition(" ")[0]
            return start_response(line, headers)

        with self._lock:
            self._current[method] += 1
            self._most[method] = max(self._most[method], self._current[method])
        try:
            time.sleep(self._waits.get(method, 0))
            return self._answer(environ, start)
        finally:
            path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
            answer = Answer(method, path, query, int(status[0]), began, time.monotonic())
            with self._lock:
                self._current[method] -= 1
                self._answers.append(answer)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        fault = self._next_fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        kind = fault["kind"] if fault else ""
        if fault and kind == "slow":
            time.sleep(fault["seconds"])
        if kind in ERRORS:
            return refuse_request(kind, start_response)
        answer: Iterable[bytes] = [b""]
        if kind == "drop":
            start_response("200 OK", [])
        elif (stored := self._object(environ)) is not None:
            start_response(
                "200 OK", [("Content-Type", "binary/octet-stream"), *stored.response_dict.items()]
            )
            answer = [stored.value]
        else:
            answer = self._s3(environ, start_response)
        if kind in ("drop", "drop-after"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return [b""]
        return answer

    def _object(self, environ: WSGIEnvironment) -> StoredObject | None:
        """Return the object of a plain GET straight from moto's memory; None where moto answers.

        This is a tenth of moto's work: a distant store would not load the machine that reads.
        """
        if (
            environ["REQUEST_METHOD"] != "GET"
            or environ["QUERY_STRING"]
            or any(name in environ for name in CONDITIONS)
        ):
            return None
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        if not key:
            return None
        with contextlib.suppress(Exception):  # no such bucket: moto answers with the right error
            stored: StoredObject | None = self._backend.get_object(bucket, key)
            return stored
        return None

    def _next_fault(self, method: str, path: str) -> FaultRule | None:
        with self._lock:
            self._requests.append(f"{method} {path}")
            self._times.append(time.time())
            for fault in self._faults:
                if fault["times"] > 0 and fault["method"] in ("", method) and fault["path"] in path:
                    fault["times"] -= 1
                    return fault
        return None


def refuse_request(kind: str, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with one of ERRORS, as S3 words it."""
    status, code = ERRORS[kind]
    message = "<Message>as the test asked</Message>"
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code>{message}</Error>".encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


def main() -> None:
    """Serve until stdin ends."""
    server = _Server(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(server.command(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
