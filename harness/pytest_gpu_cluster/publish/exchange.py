"""Exchanges with a CI host's API, without the network.

An `Exchange` is a generator that yields a `Request` and gets its `Response`, or has a
`PublishError` raised at its `yield`. `drive` runs one with anything that can send requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import field

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.publish.refusals import refusal_text

MAX_PAGES = 20  # of a list, with 100 entries each

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
JsonObject = Mapping[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A base URL of the API. `headers` hold the credential and enter no repr."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    # The first that answers is used. With any of them the environment's proxies are ignored.
    proxies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call below an endpoint's base URL. `repeatable`: sending it twice does no harm."""

    method: str
    path: str
    body: JsonValue = None
    endpoint: str = "token"  # its name
    repeatable: bool = True


@dataclass(frozen=True, kw_only=True)
class Response:
    """The answer to a request. Names of headers are in lower case."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> JsonValue:
        """Return the body. Raises PublishError if it is no JSON."""
        try:
            body: JsonValue = json.loads(self.text)
        except ValueError as problem:
            raise self.unexpected("no JSON") from problem
        return body

    def unexpected(self, kind: str) -> PublishError:
        """Return the error for a body of another kind than expected."""
        words = refusal_text(self.text)
        return PublishError(f"it answered {self.status} with something that is {kind}: {words}")


class PublishError(Exception):
    """A request that failed. `status` is 0 if no response came."""

    def __init__(self, message: str, *, status: int = 0, body: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.status, self.body, self.remedy = status, body, remedy


class NoEndpoint(PublishError):  # noqa: N818 - named by its cause, as ResponseLost is
    """The endpoint cannot be used: no proxy answers, or there is no token."""


class ResponseLost(PublishError):  # noqa: N818 - a request may have had its effect: no error yet
    """No response came to a request that must not be repeated. It may have had its effect."""


Exchange = Generator[Request, Response, None]


def drive(exchange: Exchange, send: Callable[[Request], Response]) -> None:
    """Run an exchange to its end. Raises the PublishError that the exchange does not handle."""
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


@dataclass(frozen=True, kw_only=True)
class Page:
    """A part of a list."""

    entries: list[JsonObject]
    last: bool


def fetch_pages(
    request: Callable[[int], Request], read: Callable[[Response, JsonValue], Page]
) -> Generator[Request, Response, list[JsonObject]]:
    """Return the entries of a list that comes in pages, which count from 1.

    `read` makes a page of a response and its JSON. Its TypeError or KeyError becomes a
    PublishError: the body is no list.
    """
    entries: list[JsonObject] = []
    for number in range(1, MAX_PAGES + 1):
        response = yield request(number)
        body = response.json()
        try:
            page = read(response, body)
        except (KeyError, TypeError) as problem:
            raise response.unexpected("no list") from problem
        entries += page.entries
        if page.last:
            break
    return entries


def json_object(value: JsonValue) -> JsonObject:
    """Return a JSON value that has to be an object. Raises TypeError."""
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    return value


def json_objects(value: JsonValue) -> list[JsonObject]:
    """Return a JSON value that has to be a list of objects. Raises TypeError."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list of JSON objects, got {type(value).__name__}")
    return [json_object(entry) for entry in value]


def json_child(parent: JsonValue, name: str) -> JsonObject:
    """Return the object below `name`; {} where there is none."""
    child = parent.get(name) if isinstance(parent, dict) else None
    return child if isinstance(child, dict) else {}
