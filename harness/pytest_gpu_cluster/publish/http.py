"""Requests to a CI host: which door they take, how long they are tried, and what is said when they fail.

A publisher is a set of generators (`Exchange`) that yield a `Request` and get its `Response`; nothing of the network is in
them. `Sender` is the network: bounded time, back-off on 429 and 5xx, no redirect followed, no credential in any text.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pytest_gpu_cluster.report import render

SURFACE_S = 25.0  # for all requests of one surface, their retries included
CONNECT_S = 5.0
READ_S = 10.0
TRIES = 5
PAUSE_S = (0.5, 8.0)  # before the first and at most before a later retry; each with jitter
BODY_BYTES = 16 << 20
SHOWN_CHARS = 300  # of a refusal's body
UNSURE = (500, 502, 504)  # it may have been done all the same


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call below a door's base URL. `repeatable`: sending it twice does no harm."""

    method: str
    path: str
    body: Any = None
    door: str = "token"
    repeatable: bool = True


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body. Raises PublishError for what is no JSON."""
        try:
            return json.loads(self.text)
        except ValueError as problem:
            raise PublishError(
                f"it answered {self.status} with something that is no JSON: {shown(self.text)}"
            ) from problem


class PublishError(Exception):
    """A request that did not do what it was for. `status` is 0 where no answer came."""

    def __init__(self, what: str, *, status: int = 0, body: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.status, self.body, self.remedy = status, body, remedy


class NoDoor(PublishError):  # noqa: N818 - said of the way, not of an error
    """There is no way in: no proxy answers, or there is no token."""


class Lost(PublishError):  # noqa: N818 - said of the answer
    """No answer came to something that must not be sent twice: it may have been done."""


Exchange = Generator[Request, Response, None]


@dataclass(frozen=True, kw_only=True)
class Door:
    """A way to the API. `headers` hold the credential and enter no repr."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxies: tuple[
        str, ...
    ] = ()  # the first that answers is used; with any, nothing of the environment's proxies is


class Sender:
    """Sends requests through doors, for at most `SURFACE_S` seconds since the last `begin`, and not beyond `until`."""

    def __init__(
        self, doors: Mapping[str, Door], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._doors, self._clock = doors, clock
        self.hurry = threading.Event()  # set: no further try, something newer is to be told
        self._sessions: dict[str, Any] = {}
        self._deadline = clock() + SURFACE_S
        self.until = float("inf")

    def begin(self, *, share: float = 1.0) -> None:
        """A new surface, with at most this share of the time that is left for all."""
        now = self._clock()
        self._deadline = now + min(SURFACE_S, share * max(0.0, self.until - now))

    @property
    def left_s(self) -> float:
        return min(self._deadline, self.until) - self._clock()

    def __call__(self, request: Request) -> Response:
        """The answer, if it is a good one (2xx). Raises PublishError."""
        session = self._session(request.door)
        url, pause_s, problem = (
            self._doors[request.door].base + request.path,
            PAUSE_S[0],
            PublishError("there was no time left"),
        )
        for _ in range(TRIES):
            if self.left_s <= 0.1:
                break
            try:
                response = self._once(session, request, url)
            except OSError as error:  # of requests too: no connection, too slow, cut
                problem = PublishError(
                    f"no answer: {_reason(error)}",
                    remedy="check the network between this step and the host",
                )
                if not request.repeatable:
                    raise Lost(str(problem), remedy=problem.remedy) from error
                wait_s = pause_s
            else:
                if 200 <= response.status < 300:
                    return response
                asked_s = _retry_after(response)
                problem = refusal(response, asked_s=asked_s or 0.0)
                if asked_s is None and response.status != 429 and response.status < 500:
                    raise problem
                if not request.repeatable and response.status in UNSURE:
                    raise Lost(str(problem), status=response.status, body=response.text)
                wait_s = max(asked_s or 0.0, pause_s)
            wait_s *= 1 + random.random() / 4
            if wait_s >= self.left_s or self.hurry.wait(wait_s):
                break
            pause_s = min(2 * pause_s, PAUSE_S[1])
        raise problem

    def _once(self, session: Any, request: Request, url: str) -> Response:
        from urllib3.exceptions import HTTPError

        left_s = self.left_s
        timeout = (min(CONNECT_S, left_s), min(READ_S, left_s))
        with session.request(
            request.method,
            url,
            json=request.body,
            timeout=timeout,
            allow_redirects=False,
            stream=True,
        ) as answer:
            body = bytearray()
            try:
                while chunk := answer.raw.read1(1 << 16, decode_content=True):
                    body += chunk
                    if self.left_s <= 0 or len(body) > BODY_BYTES:
                        raise TimeoutError(
                            "the answer came too slowly"
                            if self.left_s <= 0
                            else "the answer is too long"
                        )
            except HTTPError as error:  # cut off, too slow, not what its encoding says: what requests would make an OSError of
                raise ConnectionError(str(error)) from error
            return Response(
                status=answer.status_code,
                text=body.decode("utf-8", "replace"),
                headers=dict(answer.headers.lower_items()),
            )

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            import requests

            if name not in self._doors:
                raise NoDoor("there is no credential for it")
            door, session = self._doors[name], requests.Session()
            if door.proxies:
                proxy = next((url for url in door.proxies if _answers(url)), None)
                if proxy is None:
                    raise NoDoor(f"no proxy answers at {' or '.join(door.proxies)}")
                session.trust_env = False
                session.proxies = {"http": proxy}
            session.auth = _Headers(door.headers)  # with none, requests looks for one in ~/.netrc
            session.headers["User-Agent"] = "pytest-gpu-cluster"
            self._sessions[name] = session
        return self._sessions[name]


class _Headers:
    """Adds a door's headers to a request; has no value in its repr."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> Any:
        request.headers.update(self._headers)
        return request


def drive(exchange: Exchange, send: Callable[[Request], Response]) -> None:
    """Run an exchange to its end. Raises the PublishError that it did not deal with."""
    try:
        request = next(exchange)
        while True:
            try:
                response = send(request)
            except PublishError as problem:
                request = exchange.throw(problem)
            else:
                request = exchange.send(response)
    except StopIteration:
        return


def refusal(response: Response, *, asked_s: float = 0.0) -> PublishError:
    wish = f" (it asks to be left alone for {asked_s:.0f} s)" if asked_s else ""
    return PublishError(
        f"{response.status}: {shown(response.text)}{wish}",
        status=response.status,
        body=response.text,
    )


def unusable(name: str, token: str) -> list[str]:
    """What is wrong with a token that cannot be a header; the HTTP library would say it by showing it."""
    bad = any(ord(character) < 33 or ord(character) > 126 for character in token)
    return [f"{name} has a blank or a control character inside: set it again"] if bad else []


def shown(body: str) -> str:
    """What a refusal says, in one line: hosts answer with three shapes of JSON, with HTML, or with nothing.

    >>> shown('{"type":"error","error":{"message":"key: too long","fields":{"key":["at most 40"]}}}')
    'key: too long; key: at most 40'
    >>> shown("<html><h1>Bad Request (400)</h1></html>"), shown("")
    ('Bad Request (400)', 'no reason was given')
    """
    text = body
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(body)
        said = said if isinstance(said, dict) else {"message": said}
        error = said.get("error") or said
        error = (
            error
            if isinstance(error, dict)
            else {"message": error, "detail": said.get("error_description")}
        )
        message, fields = error.get("message"), error.get("fields") or error.get("errors") or {}
        message, fields = ("", message) if isinstance(message, dict) else (message, fields)
        fields = fields if isinstance(fields, dict) else {"errors": fields}
        parts = [
            message,
            error.get("detail"),
            *(f"{name}: {_joined(value)}" for name, value in fields.items()),
        ]
        text = "; ".join(_joined(part) for part in parts if part) or body
    line = render.one_line(
        re.sub(r"<(style|script)\b.*?</\1>|</?[A-Za-z!][^>]*>", " ", text, flags=re.S)
    )
    return (line[:SHOWN_CHARS] + "…" if len(line) > SHOWN_CHARS else line) or "no reason was given"


def _joined(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _retry_after(response: Response) -> float | None:
    """Seconds that the host asks to wait; None where it does not ask to try again."""
    asked = response.headers.get("retry-after", "")
    if response.status not in (403, 429, 503) or not asked:
        return None
    if asked.isdecimal():
        return float(asked)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: OSError) -> str:
    """The innermost reason: what requests and urllib3 wrap around it repeats the URL."""
    inner: BaseException = error
    while (below := getattr(inner, "reason", None) or inner.__context__) and isinstance(
        below, BaseException
    ):
        inner = below
    return " ".join(f"{type(inner).__name__}: {inner}".split())[:SHOWN_CHARS]


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1.0):
            return True
    except OSError:
        return False
