"""Requests to the fake hosts, and bodies that the hosts take."""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.hosts import FakeBitbucket
from tests.hosts.server import Host

COMMIT = "a" * 40
BUCKET = "/2.0/repositories/acme/aerial"
REPORT = f"{BUCKET}/commit/{COMMIT}/reports/gpu-tests"
BUILD = f"{BUCKET}/commit/{COMMIT}/statuses/build"
COMMENTS = f"{BUCKET}/pullrequests/7/comments"
HUB = "/repos/acme/aerial"
LAB = "/api/v4/projects/42"
NOTES = f"{LAB}/merge_requests/7/notes"
LINK = "https://gpu.example.com/sessions/1"


@dataclass(frozen=True)
class Answered:
    """A response of a fake host: JSON decoded, any other body as text."""

    status: int
    body: Any
    headers: dict[str, str]


def ask(
    host: Host,
    method: str,
    path: str,
    body: Any = None,
    *,
    endpoint: str = "direct",
    **headers: str,
) -> Answered:
    """One request, body as JSON, credentials that are valid unless others are given.

    Header names are written with `_`.
    """
    port = urlsplit(host.address(endpoint)).port
    sent = {"Content-Type": "application/json", "User-Agent": "tests"}
    if endpoint == "direct":
        sent["Authorization"] = f"Bearer {getattr(host, 'token', '')}"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(
            method, path, content, {name: value for name, value in sent.items() if value}
        )
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    decoded: Any = text
    with contextlib.suppress(ValueError):
        decoded = json.loads(text)
    return Answered(
        answer.status, decoded, {name.lower(): value for name, value in answer.getheaders()}
    )


def through(
    host: FakeBitbucket, method: str, path: str, body: Any = None, **headers: str
) -> Answered:
    return ask(host, method, f"http://api.bitbucket.org{path}", body, endpoint="proxy", **headers)


def a_status(**changed: Any) -> dict[str, Any]:
    return {"key": "gpu-tests", "state": "SUCCESSFUL", "url": LINK, **changed}


def a_report(**changed: Any) -> dict[str, Any]:
    return {"title": "GPU tests", "details": "12 passed", **changed}


def an_annotation(number: int = 0, **changed: Any) -> dict[str, Any]:
    return {
        "external_id": f"n-{number}",
        "annotation_type": "BUG",
        "summary": "test_it failed",
        **changed,
    }


def a_datum(kind: str | None, content: Any) -> dict[str, Any]:
    return a_report(data=[{"title": "It", "value": content, **({"type": kind} if kind else {})}])


def a_check(**changed: Any) -> dict[str, Any]:
    return {"name": "gpu", "head_sha": COMMIT, **changed}


def marked(**changed: Any) -> dict[str, Any]:
    status_body = {
        "path": "a.py",
        "start_line": 3,
        "end_line": 3,
        "annotation_level": "failure",
        "message": "no",
        **changed,
    }
    return a_check(output={"title": "t", "summary": "s", "annotations": [status_body]})


def case(inner: str = "", name: str = "test_it", more: str = "") -> str:
    return f'<testcase classname="tests.test_a" name="{name}" time="0.1" {more}>{inner}</testcase>'
