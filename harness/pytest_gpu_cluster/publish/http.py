"""The network below exchanges: bounded time, and retries after 429 and 5xx.

No redirect is followed, no credential enters a text, and nothing is sent to an address that the
HTTP library or the host could read as another one.
"""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pytest_gpu_cluster.contract.fields import shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.publish.exchange import (
    Endpoint,
    NoEndpoint,
    PublishError,
    Request,
    Response,
    ResponseLost,
)
from pytest_gpu_cluster.publish.refusals import REASON_CHARS, refusal_text

if TYPE_CHECKING:
    import requests

TARGET_S = 25.0  # for all requests of one target, with their retries
CONNECT_S = 5.0
READ_S = 10.0
MIN_S = 0.1  # with less time no request is sent
TRIES = 5
PAUSE_S = (0.5, 8.0)  # before the first and at most before a later retry; each with jitter
BODY_BYTES = 16 << 20
# A base URL, and the path with its query below it. `%25` would be a second encoding.
BASE = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*")
PATH = re.compile(
    r"(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%(?!25)[0-9A-Fa-f]{2})+)+"
    r"(\?([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
)
UNSURE = (500, 502, 504)  # the request may have had its effect all the same


@dataclass(frozen=True, kw_only=True)
class _Retry:
    """A failure that may pass: the host asks for `after_s` seconds, 0 if for none."""

    problem: PublishError
    after_s: float = 0.0


class Transport:
    """Sends requests to endpoints.

    The requests of one target have `TARGET_S` seconds since the last `begin`; all requests end
    before `deadline`, in seconds of the clock.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._endpoints, self._clock = endpoints, clock
        self.stop_retries = threading.Event()  # set: a newer report waits
        self._sessions: dict[str, requests.Session] = {}
        self._target_deadline = clock() + TARGET_S
        self.deadline = float("inf")

    def begin(self, *, share: float = 1.0) -> None:
        """Start a target, with at most this share of the time that remains for all."""
        now = self._clock()
        self._target_deadline = now + min(TARGET_S, share * max(0.0, self.deadline - now))

    @property
    def remaining_s(self) -> float:
        """Seconds until the current target has to end."""
        return min(self._target_deadline, self.deadline) - self._clock()

    def __call__(self, request: Request) -> Response:
        """Return the response, whose status is 2xx. Raises PublishError."""
        session = self._session(request.endpoint)
        url = plain_url(self._endpoints[request.endpoint].base, request.path)
        pause_s, problem = PAUSE_S[0], PublishError("there was no time left")
        for _ in range(TRIES):
            if self.remaining_s <= MIN_S:
                break
            match self._attempt(session, request, url):
                case Response() as response:
                    return response
                case _Retry() as retry:
                    problem = retry.problem
            wait_s = max(retry.after_s, pause_s) * (1 + random.random() / 4)
            if wait_s >= self.remaining_s or self.stop_retries.wait(wait_s):
                break
            pause_s = min(2 * pause_s, PAUSE_S[1])
        raise problem

    def _attempt(self, session: requests.Session, request: Request, url: str) -> Response | _Retry:
        """Send a request once. Raises PublishError where another try cannot help."""
        try:
            response = self._send(session, request, url)
        except OSError as error:  # of requests too: no connection, too slow, cut
            reason, remedy = _reason(error), "check the network between this step and the host"
            if not request.repeatable:
                raise ResponseLost(f"no answer: {reason}", remedy=remedy) from error
            return _Retry(problem=PublishError(f"no answer: {reason}", remedy=remedy))
        if 200 <= response.status < 300:
            return response
        after_s = retry_after_s(response)
        problem = refusal(response, after_s=after_s or 0.0)
        if after_s is None and response.status != 429 and response.status < 500:
            raise problem
        if not request.repeatable and response.status in UNSURE:
            raise ResponseLost(str(problem), status=response.status, body=response.text)
        return _Retry(problem=problem, after_s=after_s or 0.0)

    def _send(self, session: requests.Session, request: Request, url: str) -> Response:
        """Return the response, whatever its status. Raises OSError."""
        from urllib3.exceptions import HTTPError

        remaining_s = self.remaining_s
        with session.request(
            request.method,
            url,
            json=request.body,
            timeout=(min(CONNECT_S, remaining_s), min(READ_S, remaining_s)),
            allow_redirects=False,
            stream=True,
        ) as answer:
            try:
                body = self._read(answer)
            except HTTPError as error:  # cut off, too slow, or not of the encoding that it names
                raise ConnectionError(str(error)) from error
            return Response(
                status=answer.status_code,
                text=body.decode("utf-8", "replace"),
                headers=dict(answer.headers.lower_items()),
            )

    def _read(self, answer: requests.Response) -> bytes:
        """Return the body. Raises TimeoutError if it is too long or comes too slowly."""
        body = bytearray()
        while chunk := answer.raw.read1(1 << 16, decode_content=True):
            body += chunk
            if self.remaining_s <= 0:
                raise TimeoutError("the answer came too slowly")
            if len(body) > BODY_BYTES:
                raise TimeoutError("the answer is too long")
        return bytes(body)

    def _session(self, name: str) -> requests.Session:
        if name not in self._sessions:
            if name not in self._endpoints:
                raise NoEndpoint("there is no credential for it")
            self._sessions[name] = _open_session(self._endpoints[name])
        return self._sessions[name]


def plain_url(base: str, path: str) -> str:
    """Return the URL of a request. Raises PublishError for one that can be read in two ways.

    >>> plain_url("https://api.example.com/2.0", "/projects/acme%2Faerial?page=1")
    'https://api.example.com/2.0/projects/acme%2Faerial?page=1'
    """
    decoded = unquote(path.partition("?")[0])
    dots = {".", ".."} & {*decoded.split("/"), *base.split("/")}
    if dots or not BASE.fullmatch(base) or not PATH.fullmatch(path) or not decoded.isprintable():
        raise PublishError(
            f"nothing was sent to {shown(base + path)}: it is no plain address",
            remedy="see what names it: the record of the session, or a variable of this process",
        )
    return base + path


def _open_session(endpoint: Endpoint) -> requests.Session:
    """Return a session for an endpoint. Raises NoEndpoint if none of its proxies answers."""
    import requests

    session = requests.Session()
    if endpoint.proxies:
        proxy = next((url for url in endpoint.proxies if _accepts_connections(url)), None)
        if proxy is None:
            raise NoEndpoint(f"no proxy answers at {' or '.join(endpoint.proxies)}")
        session.trust_env = False
        session.proxies = {"http": proxy}
    session.auth = _Headers(endpoint.headers)  # with none, requests looks for one in ~/.netrc
    session.headers["User-Agent"] = "pytest-gpu-cluster"
    return session


class _Headers:
    """Adds an endpoint's headers to a request; no value enters its repr."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)
        return request


def token_problem(name: str, token: str) -> str:
    """Return the fault of a token that cannot be a header, or "".

    The HTTP library would name the fault by showing the token.
    """
    if all(33 <= ord(character) <= 126 for character in token):
        return ""
    return f"{name} has a blank or a control character inside: set it again"


def refusal(response: Response, *, after_s: float = 0.0) -> PublishError:
    """Return the error for a status that is no success; the host asks to wait `after_s` seconds."""
    pause = f" (it asks to be left alone for {after_s:.0f} s)" if after_s else ""
    return PublishError(
        f"{response.status}: {refusal_text(response.text)}{pause}",
        status=response.status,
        body=response.text,
    )


def retry_after_s(response: Response) -> float | None:
    """Return the seconds that the host asks to wait; None if it does not ask to try again."""
    value = response.headers.get("retry-after", "")
    if response.status not in (403, 429, 503) or not value:
        return None
    if value.isdecimal():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: OSError) -> str:
    """Return the innermost reason: requests and urllib3 wrap it into texts that repeat the URL."""
    inner: BaseException = error
    while (cause := getattr(inner, "reason", None) or inner.__context__) and isinstance(
        cause, BaseException
    ):
        inner = cause
    return " ".join(f"{type(inner).__name__}: {inner}".split())[:REASON_CHARS]


def _accepts_connections(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1.0):
            return True
    except OSError:
        return False
