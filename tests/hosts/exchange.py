"""Requests that a fake host gets, its answers, and the faults that it is told to have."""

from __future__ import annotations

import html as markup
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Recorded:
    """A request as it came, and how it was answered.

    `status` 0 is a connection closed without an answer.
    """

    method: str
    path: str  # with the query
    headers: Mapping[str, str]  # names in lower case
    body: Any  # parsed where it is JSON, else text
    status: int
    via: str  # "direct" or "proxy"


@dataclass(frozen=True)
class Request:
    """A request to be answered; `path` is as sent, without the query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    content: bytes
    via: str
    origin: str = ""  # scheme and host of an absolute request line, as a proxy gets it

    @property
    def target(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """Status, body and headers of an answer.

    A body that is not text is sent as JSON, text as a page unless a header says else.
    """

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> tuple[str, bytes]:
        """Content type and bytes."""
        if self.body is None:
            return "", b""
        if isinstance(self.body, str):
            return "text/html; charset=utf-8", self.body.encode()
        return "application/json; charset=utf-8", json.dumps(self.body).encode()


class RefusedError(Exception):
    """A request that is not served.

    `words` say what is wrong with it, and are empty where nothing is.
    """

    def __init__(self, answer: Answer, words: str) -> None:
        super().__init__(words)
        self.answer, self.words = answer, words


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that one request meets, in place of a plain answer.

    Without `code` the request is served all the same.
    """

    code: int = 0
    body: Any = None  # as an answer's; None: the host's own error body
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0  # before the answer
    pause_s: float = 0  # before every byte of the body
    cut_after: int | None = (
        None  # bytes of the body until the connection is closed; -1: not even a status line
    )
    served: bool = True


def status(code: int, retry_after: float | None = None) -> Fault:
    """The host's own error body with this code; the request is not served."""
    return Fault(
        code=code,
        headers={} if retry_after is None else {"Retry-After": f"{retry_after:g}"},
        served=False,
    )


def html(code: int) -> Fault:
    """An error page for people, as a load balancer gives it."""
    title = f"{REASONS.get(code, 'Error')} ({code})"
    return Fault(
        code=code,
        body=f"<!DOCTYPE html><html><body><h1>{markup.escape(title)}</h1></body></html>",
        served=False,
    )


def garbage() -> Fault:
    """A success that says it is JSON and is not."""
    return Fault(
        code=200,
        body="<<<\x00 whatever this is {",
        headers={"Content-Type": "application/json"},
        served=False,
    )


def slow(seconds: float) -> Fault:
    """The true answer, `seconds` late."""
    return Fault(wait_s=seconds)


def trickle(seconds: float) -> Fault:
    """The true answer, one byte at a time with `seconds` before each.

    No read times out, and the whole never ends.
    """
    return Fault(pause_s=seconds)


def cut(after: int | None = None, *, served: bool = False) -> Fault:
    """Close the connection: without an answer, or `after` so many bytes of its body.

    `served`: the request has its effect all the same.
    """
    return Fault(cut_after=-1 if after is None else after, served=served or after is not None)
