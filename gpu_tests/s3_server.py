"""A real S3 over HTTP, in a process of its own, as far away as a test wants it and with faults on demand.

moto serves the S3; a thin layer before it answers, delays or drops what a test asked it to, and counts. A client reaches it
as it reaches any S3: `AWS_ENDPOINT_URL` and dummy keys, both in `S3Server.env`.

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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

Fault = Literal["403", "503", "skew", "slow", "drop", "drop-after"]
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
    "skew": ("403 Forbidden", "RequestTimeTooSkewed"),
}


class S3Server:
    """The server's process, seen from the test. Ends with the `with` block, or when the test's process dies.

    `host` is where it listens: the loopback, or this node's address when other machines are to reach it.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host

    def __enter__(self) -> S3Server:
        command = [sys.executable, str(Path(__file__).resolve()), self.host]
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.endpoint = f"http://{self.host}:{self._ask(do='accept')}"
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
        """What a client's environment needs to come here, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "dummy-access-key",
            "AWS_SECRET_ACCESS_KEY": "dummy-secret-key",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": self.host,
        }

    def make_bucket(self, name: str) -> None:
        """Create the bucket `name`; quiet when it is there."""
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

        "slow" answers after `seconds`; "drop" hangs up before the request is served, "drop-after" when it was.
        """
        self._ask(do="fault", kind=kind, times=times, method=method, path=path, seconds=seconds)

    def throttle(self, *, get_s: float = 0, put_s: float = 0) -> None:
        """Let every GET and PUT take so long: simulated, as the way to a real S3 is not here."""
        self._ask(do="throttle", waits={"GET": get_s, "PUT": put_s})

    def refuse(self) -> None:
        """Refuse connections from now on; what is stored stays."""
        self._ask(do="refuse")

    def heal(self) -> None:
        """No fault any more; accept connections."""
        self._ask(do="heal")
        self._ask(do="accept")

    def requests(self) -> list[str]:
        """Method and path of every request so far, oldest first."""
        answer = self._ask(do="requests")
        assert isinstance(answer, list)
        return answer

    def most_at_once(self, method: str) -> int:
        """How many requests of `method` were being answered at the same moment, at most; then counts anew."""
        answer = self._ask(do="most_at_once", method=method)
        assert isinstance(answer, int)
        return answer

    def first_request(self, path: str) -> float:
        """When (unix seconds) a request whose path contains `path` first came since the last such question; 0 for never."""
        answer = self._ask(do="first_request", path=path)
        assert isinstance(answer, float)
        return answer

    def _ask(self, **command: Any) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class _Server:
    """The process itself: commands come in on stdin, one JSON object a line; each is answered with one."""

    def __init__(self, host: str) -> None:
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from moto.s3.models import s3_backends

        self._s3: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._faults: list[dict[str, Any]] = []
        self._seen: list[str] = []
        self._times: list[float] = []  # unix seconds of each of them
        self._asked = 0  # how many there were at the last question
        self._waits: dict[str, float] = {}
        self._now: Counter[str] = Counter()  # requests that are being answered, by method
        self._most: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._host = host
        self._port = 0
        self._http: Any = None  # werkzeug's server

    def command(self, do: str, **fault: Any) -> object:
        match do:
            case "fault":
                self._faults.append(fault)
            case "heal":
                self._faults.clear()
            case "throttle":
                self._waits = fault["waits"]
            case "requests":
                return self._seen
            case "first_request":
                since, self._asked = self._asked, len(self._seen)
                new = zip(self._seen[since:], self._times[since:], strict=False)
                return next((at for line, at in new if fault["path"] in line), 0.0)
            case "most_at_once":
                return self._most.pop(fault["method"], 0)
            case "refuse" if self._http is not None:
                self._http.shutdown()
                self._http.server_close()
                self._http = None
            case "accept" if self._http is None:
                self._listen()
        return self._port

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

    def _serve(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        with self._lock:
            self._now[method] += 1
            self._most[method] = max(self._most[method], self._now[method])
        try:
            time.sleep(self._waits.get(method, 0))
            return self._answer(environ, start_response)
        finally:
            with self._lock:
                self._now[method] -= 1

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        fault = self._next_fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        kind = fault["kind"] if fault else ""
        if fault and kind == "slow":
            time.sleep(fault["seconds"])
        if kind in ERRORS:
            status, code = ERRORS[kind]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as the test asked</Message></Error>".encode()
            start_response(
                status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            )
            return [body]
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

    def _object(self, environ: dict[str, Any]) -> Any:
        """What a plain GET asks for, straight from moto's memory, a tenth of the work; None where moto is to answer.

        A store that is far away does not take time of the machine that reads from it.
        """
        if (
            environ["REQUEST_METHOD"] != "GET"
            or environ["QUERY_STRING"]
            or any(name in environ for name in CONDITIONS)
        ):
            return None
        bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        with contextlib.suppress(Exception):  # no such bucket: moto knows how to say so
            return self._backend.get_object(bucket, key) if key else None
        return None

    def _next_fault(self, method: str, path: str) -> dict[str, Any] | None:
        with self._lock:
            self._seen.append(f"{method} {path}")
            self._times.append(time.time())
            for fault in self._faults:
                if fault["times"] > 0 and fault["method"] in ("", method) and fault["path"] in path:
                    fault["times"] -= 1
                    return fault
        return None


def main() -> None:
    server = _Server(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(server.command(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
