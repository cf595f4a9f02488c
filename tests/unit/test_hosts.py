"""The fake CI hosts that other tests publish to.

Each refuses what the real one refuses, or a test against it proves nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.hosts import (
    READERS,
    Case,
    Command,
    FakeBitbucket,
    FakeGitHub,
    FakeGitLab,
    JobLink,
    annotations_report,
    bitbucket_finds,
    cut,
    garbage,
    gitlab_junit,
    html,
    job_summary,
    schema_errors,
    secondary_limit,
    slow,
    status,
    trickle,
    workflow_commands,
)
from tests.hosts.bitbucket import REPOSITORY_UUID, STEP_UUID
from tests.hosts.github import MERGE_COMMIT
from tests.hosts.markdown import rendered
from tests.hosts.readers import UnreadableError, enricomi, jenkins, mikepenz
from tests.hosts.render import duration, page, value
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
class Said:
    status: int
    body: Any
    headers: dict[str, str]


def ask(
    host: Host, method: str, path: str, body: Any = None, *, door: str = "direct", **headers: str
) -> Said:
    """One request, body as JSON, credentials that are valid unless others are given.

    Header names are written with `_`.
    """
    port = urlsplit(host.address(door)).port
    sent = {"Content-Type": "application/json", "User-Agent": "tests"}
    if door == "direct":
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
    return Said(
        answer.status, decoded, {name.lower(): value for name, value in answer.getheaders()}
    )


def through(host: FakeBitbucket, method: str, path: str, body: Any = None, **headers: str) -> Said:
    return ask(host, method, f"http://api.bitbucket.org{path}", body, door="proxy", **headers)


@pytest.fixture
def bitbucket() -> Iterator[FakeBitbucket]:
    with FakeBitbucket() as host:
        yield host


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    with FakeGitHub() as host:
        yield host


@pytest.fixture
def gitlab() -> Iterator[FakeGitLab]:
    with FakeGitLab() as host:
        yield host


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


# The server.


def unanswered(host: Host) -> None:
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(host, "GET", COMMENTS)


def test_closing_leaves_no_thread_and_no_port_behind() -> None:
    """A suite makes hundreds of hosts.

    What each left behind would add up, and slow answers must not hold up the end of a test.
    """
    before = threading.active_count()
    host = FakeBitbucket().start()
    host.fault((None, ""), slow(30))
    waiting = threading.Thread(target=unanswered, args=(host,), daemon=True)
    idle = http.client.HTTPConnection("127.0.0.1", urlsplit(host.url).port)
    idle.connect()
    waiting.start()
    while not host._servers["direct"]._answering:
        time.sleep(0.001)
    port, started = urlsplit(host.url).port, time.monotonic()

    host.close()
    host.close()

    assert time.monotonic() - started < 2
    waiting.join(5)
    idle.close()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()


def test_a_request_is_recorded_as_it_came_and_as_it_was_answered(bitbucket: FakeBitbucket) -> None:
    """Tests of what is sent, and in which order, read this."""
    ask(bitbucket, "POST", BUILD, a_status())
    through(bitbucket, "GET", f"{REPORT}?pagelen=5")

    first, second = bitbucket.requests
    assert (first.method, first.path, first.status, first.via, first.body) == (
        "POST",
        BUILD,
        201,
        "direct",
        a_status(),
    )
    assert first.headers["authorization"] == f"Bearer {bitbucket.token}"
    assert (second.path, second.status, second.via, second.body) == (
        f"{REPORT}?pagelen=5",
        404,
        "proxy",
        "",
    )
    assert bitbucket.seen("POST", "statuses") == [first]
    assert bitbucket.refused == []


def test_each_fault_meets_one_request_in_order(bitbucket: FakeBitbucket) -> None:
    """A retry is tested with the second answer, so a fault may not stay.

    A request that no fault is meant for meets none.
    """
    bitbucket.fault(
        ("GET", r"/comments"), status(429, retry_after=2), status(503), html(502), garbage()
    )

    answers = [ask(bitbucket, "GET", COMMENTS) for _ in range(5)]

    assert [answer.status for answer in answers] == [429, 503, 502, 200, 200]
    assert answers[0].headers["retry-after"] == "2"
    assert answers[0].body["error"]["message"] == "Rate limit for this resource has been exceeded"
    assert "<h1>" in answers[2].body
    assert answers[3].headers["content-type"] == "application/json"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(answers[3].body)
    assert answers[4].body["values"] == []
    assert bitbucket.refused == []


def test_an_answer_may_be_late_or_slow_or_cut(bitbucket: FakeBitbucket) -> None:
    """The three ways in which a network hurts.

    Each has to be bounded by a client of its own accord.
    """
    ask(bitbucket, "PUT", REPORT, a_report())
    bitbucket.fault((None, "."), slow(0.1), trickle(0.001), cut(5))

    started = time.monotonic()
    late = ask(bitbucket, "GET", REPORT)
    between = time.monotonic()
    trickled = ask(bitbucket, "GET", REPORT)
    ended = time.monotonic()

    assert late.body == trickled.body
    assert between - started >= 0.1
    assert ended - between >= 0.001 * len(json.dumps(trickled.body))
    with pytest.raises(http.client.IncompleteRead):
        ask(bitbucket, "GET", REPORT)


@pytest.mark.parametrize("served", [False, True])
def test_a_connection_cut_without_an_answer_may_have_been_served(
    bitbucket: FakeBitbucket, served: bool
) -> None:
    """A client that repeats a POST whose answer was lost makes two comments.

    The test needs both kinds of loss.
    """
    bitbucket.fault(("POST", "/comments"), cut(served=served))

    with pytest.raises(http.client.RemoteDisconnected):
        ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "hello"}})

    assert len(bitbucket.comments) == served
    assert [request.status for request in bitbucket.requests] == [0]


def test_a_mistake_in_the_request_is_a_mistake_even_where_a_fault_waits(
    bitbucket: FakeBitbucket,
) -> None:
    """A token sent to the proxy is sent, whatever the proxy answers."""
    bitbucket.fault((None, "."), status(503))

    through(bitbucket, "PUT", REPORT, a_report(), Authorization="Bearer secret")

    assert "credentials sent to the proxy" in bitbucket.refused[0]


def test_a_failure_of_the_fake_is_seen(bitbucket: FakeBitbucket) -> None:
    """A bug here would otherwise look like a 500 that a client is right to bear."""
    bitbucket.commits = 3  # type: ignore[assignment]  # so that it breaks

    answer = ask(bitbucket, "GET", REPORT)

    assert answer.status == 500
    assert "the fake itself failed" in bitbucket.refused[0]


# Bitbucket: who may come in.


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "no credentials"),
        ("Bearer wrong", "not valid"),
        ("Basic Y2k6cmVwb3NpdG9yeS1hY2Nlc3MtdG9rZW4=", "whose user is no e-mail"),  # ci:…
        ("Basic Y2lAYWNtZS5leGFtcGxlOndyb25n", "not valid"),  # ci@acme.example:wrong
        ("Basic ???", "not valid"),
    ],
)
def test_bitbucket_lets_nobody_in_without_good_credentials(
    bitbucket: FakeBitbucket, header: str, words: str
) -> None:
    """App passwords, a name and a password, no longer exist.

    A client that still sends them fails on the first real run.
    """
    answer = ask(bitbucket, "GET", COMMENTS, Authorization=header)

    assert answer.status == 401
    assert answer.body["error"]["message"]
    assert words in bitbucket.refused[0]


def test_bitbucket_takes_an_api_token_with_its_owners_e_mail(bitbucket: FakeBitbucket) -> None:
    """The one kind of Basic credentials that is left."""
    answer = ask(
        bitbucket,
        "GET",
        COMMENTS,
        Authorization="Basic Y2lAYWNtZS5leGFtcGxlOnJlcG9zaXRvcnktYWNjZXNzLXRva2Vu",
    )

    assert answer.status == 200
    assert bitbucket.refused == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{BUCKET}/commit/{'b' * 40}/reports"),
        ("GET", f"/2.0/repositories/acme/other/commit/{COMMIT}/reports"),
        ("GET", f"{BUCKET}/pullrequests/8/comments"),
        ("GET", "/2.0/user"),
    ],
)
def test_bitbucket_knows_one_repository(bitbucket: FakeBitbucket, method: str, path: str) -> None:
    """A wrong commit or pull request is a silent loss if the fake takes it."""
    answer = ask(bitbucket, method, path)

    assert answer.status == 404
    assert len(bitbucket.refused) == 1


def test_braces_of_a_uuid_have_to_be_encoded(bitbucket: FakeBitbucket) -> None:
    """Pipelines' UUIDs come with braces, and a path with braces is no path."""
    path = f"/2.0/repositories/acme/%s/commit/{COMMIT}/reports"

    plain, encoded = (
        ask(bitbucket, "GET", path % REPOSITORY_UUID),
        ask(bitbucket, "GET", path % quote(REPOSITORY_UUID)),
    )

    assert (plain.status, encoded.status) == (400, 200)
    assert "percent-encoded" in bitbucket.refused[0]


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        ("{", "application/json", 400),
        ('{"a": NaN}', "application/json", 400),
        ("{}", "text/plain", 415),
    ],
)
def test_bitbucket_takes_json_alone(
    bitbucket: FakeBitbucket, body: str, kind: str, code: int
) -> None:
    """NaN is what Python writes for a duration that is not known, and JSON it is not."""
    answer = ask(bitbucket, "PUT", REPORT, body, Content_Type=kind)

    assert answer.status == code
    assert len(bitbucket.refused) == 1


# Bitbucket: the proxy.


def test_the_proxy_passes_reports_and_annotations_on(bitbucket: FakeBitbucket) -> None:
    """All that a pipeline without any token can publish."""
    answers = [
        through(bitbucket, "PUT", REPORT, a_report()),
        through(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(1)]),
        through(bitbucket, "PUT", f"{REPORT}/annotations/n-2", an_annotation(2)),
        through(bitbucket, "GET", f"{REPORT}/annotations"),
    ]

    assert [answer.status for answer in answers] == [200] * 4
    assert bitbucket.reports[COMMIT, "gpu-tests"] == a_report()
    assert [
        annotation["external_id"] for annotation in bitbucket.annotations(COMMIT, "gpu-tests")
    ] == [
        "n-1",
        "n-2",
    ]
    assert bitbucket.refused == []


@pytest.mark.parametrize(
    ("method", "address", "code", "words"),
    [
        ("POST", f"http://api.bitbucket.org{BUILD}", 403, "not among"),
        ("GET", f"http://api.bitbucket.org{COMMENTS}", 403, "not among"),
        ("DELETE", f"http://api.bitbucket.org{REPORT}", 403, "not among"),
        (
            "PUT",
            f"http://api.bitbucket.org{REPORT.replace('aerial', 'other')}",
            403,
            "another repository",
        ),
        ("PUT", f"https://api.bitbucket.org{REPORT}", 403, "asked of the proxy"),
        ("PUT", f"http://api.example.com{REPORT}", 403, "asked of the proxy"),
        ("PUT", REPORT, 400, "whole address"),
        ("CONNECT", "api.bitbucket.org:443", 405, "http alone"),
    ],
)
def test_the_proxy_passes_nothing_else_on(
    bitbucket: FakeBitbucket, method: str, address: str, code: int, words: str
) -> None:
    """A client that works with a token and no test of this has never worked without one."""
    answer = ask(bitbucket, method, address, a_report(), door="proxy")

    assert answer.status == code
    assert answer.body["message"]
    assert words in bitbucket.refused[0]


def test_the_proxy_may_pass_a_deletion_on() -> None:
    """Nobody says whether it does, so both are tested."""
    with FakeBitbucket(proxy_deletes=True) as host:
        through(host, "PUT", REPORT, a_report())

        answer = through(host, "DELETE", REPORT)

    assert answer.status == 204
    assert (host.reports, host.refused) == ({}, [])


def test_no_token_may_go_through_the_proxy(bitbucket: FakeBitbucket) -> None:
    """It is plain http, to whatever listens on that port."""
    through(bitbucket, "PUT", REPORT, a_report(), Authorization=f"Bearer {bitbucket.token}")

    assert "credentials sent to the proxy" in bitbucket.refused[0]


def test_the_api_is_not_a_proxy(bitbucket: FakeBitbucket) -> None:
    """A client that mixes the two up would send its token the wrong way."""
    answer = ask(bitbucket, "GET", f"http://api.bitbucket.org{COMMENTS}")

    assert answer.status == 400
    assert "as of a proxy" in bitbucket.refused[0]


# Bitbucket: build statuses.


@pytest.mark.parametrize(
    ("changed", "field", "message"),
    [
        ({"key": "k" * 48}, "key", "Ensure this value has at most 40 characters (it has 48)."),
        ({"key": " "}, "key", "Enter a valid value."),
        (
            {"state": "PASSED"},
            "state",
            "Select a valid choice. PASSED is not one of the available choices.",
        ),
        ({"url": "http://munprdjenkins1:8080/job"}, "url", "Enter a valid URL."),
        ({"url": "http://localhost:8080/"}, "url", "Enter a valid URL."),
        ({"url": "http://ray.localhost/"}, "url", "Enter a valid URL."),
        ({"url": "ftp://gpu.example.com/"}, "url", "Enter a valid URL."),
        ({"url": ""}, "url", "Enter a valid URL."),
        ({"url": f"{LINK}?s={{1}}"}, "url", "Enter a valid URL."),
        ({"name": "n" * 256}, "name", "Ensure this value has at most 255 characters (it has 256)."),
        (
            {"description": "d" * 256},
            "description",
            "Ensure this value has at most 255 characters (it has 256).",
        ),
        ({"refname": 3}, "refname", "Enter a valid value."),
        ({"colour": "red"}, "colour", "Enter a valid value."),
    ],
)
def test_bitbucket_refuses_a_status_field_by_field(
    bitbucket: FakeBitbucket, changed: dict[str, Any], field: str, message: str
) -> None:
    """The limits known from its answers, in the shape of its answers."""
    answer = ask(bitbucket, "POST", BUILD, a_status(**changed))

    assert answer.status == 400
    assert answer.body == {
        "type": "error",
        "error": {"message": f"{field}: {message}", "fields": {field: [message]}},
    }
    assert field in bitbucket.refused[0]
    assert bitbucket.statuses == {}


@pytest.mark.parametrize("missing", ["key", "state", "url"])
def test_bitbucket_wants_key_state_and_url_of_a_status(
    bitbucket: FakeBitbucket, missing: str
) -> None:
    """Its description says that url may be left out, and its users found that it may not."""
    body = a_status()
    del body[missing]

    answer = ask(bitbucket, "POST", BUILD, body)

    assert answer.body["error"]["fields"] == {missing: ["This field is required."]}


def test_a_status_of_the_same_key_replaces_the_first(bitbucket: FakeBitbucket) -> None:
    """In progress, then done: one row in the pull request, not two."""
    ask(
        bitbucket,
        "POST",
        BUILD,
        a_status(state="INPROGRESS", description="running", url="http://10.0.0.1/x"),
    )
    ask(bitbucket, "POST", BUILD, a_status(refname="feature/tiles"))
    changed = ask(bitbucket, "PUT", f"{BUILD}/gpu-tests", {"state": "FAILED"})

    assert changed.status == 200
    assert bitbucket.statuses == {
        (COMMIT, "gpu-tests"): a_status(state="FAILED", refname="feature/tiles")
    }
    assert ask(bitbucket, "GET", f"{BUILD}/gpu-tests").body["state"] == "FAILED"
    assert ask(bitbucket, "GET", BUILD.removesuffix("/build")).body["size"] == 1
    assert ask(bitbucket, "GET", f"{BUILD}/other").status == 404
    assert bitbucket.refused == []


def test_the_key_of_a_status_stays(bitbucket: FakeBitbucket) -> None:
    """Another key is another status."""
    ask(bitbucket, "POST", BUILD, a_status())

    answer = ask(bitbucket, "PUT", f"{BUILD}/gpu-tests", {"key": "other"})

    assert answer.status == 400


# Bitbucket: Code Insights.


@pytest.mark.parametrize(
    "body",
    [
        a_report(title=""),
        a_report(title="t" * 451),
        a_report(details=" "),
        a_report(details="d" * 2001),
        {"title": "t"},
        {"details": "d"},
        a_report(link="gpu.example.com"),
        a_report(logo_url="javascript:alert(1)"),
        a_report(result="ERROR"),
        a_report(report_type="UNIT"),
        a_report(remote_link_enabled="yes"),
        a_report(results="PASSED"),
        a_report(data=[{"title": str(i), "value": i} for i in range(11)]),
        a_report(data=[{"title": "no value"}]),
        a_datum("BOOLEAN", "true"),
        a_datum("DATE", 1_793_000_000),  # seconds
        a_datum("DATE", "2026-11-02"),
        a_datum("DURATION", "1m"),
        a_datum("DURATION", -1),
        a_datum("LINK", LINK),
        a_datum("LINK", {"linktext": "Session", "href": LINK}),
        a_datum("LINK", {"text": "Session", "href": "/sessions/1"}),
        a_datum("NUMBER", True),
        a_datum("PERCENTAGE", 101),
        a_datum("TEXT", 3),
        a_datum("TIME", 3),
        a_datum(None, {"text": "a", "href": LINK}),
    ],
    ids=lambda body: json.dumps(body)[-60:],
)
def test_bitbucket_refuses_a_report(bitbucket: FakeBitbucket, body: dict[str, Any]) -> None:
    """A report that is refused is a pull request without any result."""
    answer = ask(bitbucket, "PUT", REPORT, body)

    assert answer.status == 400
    assert answer.body["key"] == "report-service.general.bad-request"
    assert answer.body["arguments"] == {}
    assert len(bitbucket.refused) == 1
    assert bitbucket.reports == {}


def test_bitbucket_takes_a_full_report(bitbucket: FakeBitbucket) -> None:
    """A refusal means nothing if nothing is ever taken."""
    data = [
        {"title": "Ok", "type": "BOOLEAN", "value": True},
        {"title": "At", "type": "DATE", "value": 1_793_000_000_000},
        {"title": "Took", "type": "DURATION", "value": 83_000},
        {"title": "Session", "type": "LINK", "value": {"text": "Session", "href": LINK}},
        {"title": "Passed", "type": "NUMBER", "value": 12},
        {"title": "Cover", "type": "PERCENTAGE", "value": 99.5},
        {"title": "GPU", "type": "TEXT", "value": "A10G"},
        *({"title": "Plain", "value": content} for content in ("text", 1, False)),
    ]
    body = a_report(
        title="t" * 450,
        details="d" * 2000,
        data=data,
        link=LINK,
        result="PENDING",
        report_type="TEST",
        reporter="gpu-cluster",
    )

    answer = ask(bitbucket, "PUT", REPORT, body)

    assert answer.status == 200
    assert bitbucket.reports == {(COMMIT, "gpu-tests"): body}
    assert bitbucket.refused == []


def test_what_is_as_long_as_it_may_be_is_taken(
    bitbucket: FakeBitbucket, github: FakeGitHub, gitlab: FakeGitLab
) -> None:
    """A limit that is one too low here would make the product cut what it need not."""
    answers = [
        ask(
            bitbucket,
            "POST",
            BUILD,
            a_status(key="k" * 40, name="n" * 255, description="d" * 255, refname=None),
        ),
        ask(
            bitbucket,
            "PUT",
            REPORT,
            a_report(data=[{"title": str(i), "value": i} for i in range(10)]),
        ),
        ask(
            bitbucket,
            "POST",
            f"{REPORT}/annotations",
            [an_annotation(i, summary="s" * 450, details="d" * 2000, line=1) for i in range(100)],
        ),
        ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "x" * 32768}}),
        ask(
            github,
            "POST",
            f"{HUB}/statuses/{COMMIT}",
            {"state": "success", "description": "d" * 140},
        ),
        ask(
            github,
            "POST",
            f"{HUB}/check-runs",
            marked(title="t" * 255, message="m" * 65536, raw_details="r" * 65536),
        ),
        ask(github, "POST", f"{HUB}/issues/7/comments", {"body": "x" * 65536}),
        ask(
            gitlab,
            "POST",
            f"{LAB}/statuses/{COMMIT}",
            {"state": "success", "description": "d" * 255, "target_url": f"{LINK:u<255}"},
        ),
        ask(gitlab, "POST", NOTES, {"body": "x" * 1_000_000}),
    ]

    assert [answer.status for answer in answers] == [201, 200, 200, 201, 201, 201, 201, 201, 201]
    assert [*bitbucket.refused, *github.refused, *gitlab.refused] == []


def test_a_commit_has_ten_reports_at_most(bitbucket: FakeBitbucket) -> None:
    """Other tools have theirs: one for each shard would push them out."""
    for number in range(9):
        bitbucket.add_report(f"other-{number}")

    answers = [
        ask(bitbucket, "PUT", REPORT, a_report()),
        ask(bitbucket, "PUT", REPORT, a_report()),
        ask(bitbucket, "PUT", f"{REPORT}-2", a_report()),
    ]

    assert [answer.status for answer in answers] == [200, 200, 400]
    assert ask(bitbucket, "GET", REPORT.rpartition("/")[0]).body["size"] == 10


@pytest.mark.parametrize(
    "changed",
    [
        {"summary": "s" * 451},
        {"summary": ""},
        {"details": "d" * 2001},
        {"line": 0},
        {"line": "3"},
        {"line": True},
        {"path": "/tests/test_a.py"},
        {"path": "../test_a.py"},
        {"path": "tests/../test_a.py"},
        {"path": "./test_a.py"},
        {"path": "tests\\test_a.py"},
        {"path": ""},
        {"severity": "BLOCKER"},
        {"result": "ERROR"},
        {"annotation_type": "TEST"},
        {"link": "s3://bucket/log"},
        {"external_id": ""},
        {"message": "unknown"},
    ],
    ids=lambda changed: json.dumps(changed)[:50],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_bitbucket_refuses_an_annotation(
    bitbucket: FakeBitbucket, changed: dict[str, Any], method: str
) -> None:
    """One that is refused takes the other ninety-nine of its request with it."""
    ask(bitbucket, "PUT", REPORT, a_report())
    body = an_annotation(0, **changed)

    answer = ask(
        bitbucket,
        method,
        f"{REPORT}/annotations" + ("" if method == "POST" else "/n-0"),
        [body] if method == "POST" else body,
    )

    assert answer.status == 400
    assert answer.body["key"] == "report-service.general.bad-request"
    assert len(bitbucket.refused) == 1
    assert bitbucket.annotations(COMMIT, "gpu-tests") == []


def test_bitbucket_says_which_field_of_an_annotation_is_too_long(bitbucket: FakeBitbucket) -> None:
    """The one message of its report service that is known by heart."""
    ask(bitbucket, "PUT", REPORT, a_report())

    answer = ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(summary="s" * 451)])

    assert answer.body["message"] == "The summary field cannot contain more than 450 characters."


@pytest.mark.parametrize("count", [0, 101])
def test_annotations_come_by_the_hundred(bitbucket: FakeBitbucket, count: int) -> None:
    """Neither none nor more."""
    ask(bitbucket, "PUT", REPORT, a_report())

    answer = ask(
        bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(i) for i in range(count)]
    )

    assert answer.status == 400
    assert answer.body.get("code") == (400 if count else None)
    assert bitbucket.annotations(COMMIT, "gpu-tests") == []


def test_bitbucket_says_how_many_annotations_it_takes_at_once(bitbucket: FakeBitbucket) -> None:
    """The second of its three error shapes."""
    ask(bitbucket, "PUT", REPORT, a_report())

    answer = ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(i) for i in range(101)])

    assert answer.body == {
        "code": 400,
        "message": "Bulk upload supports a maximum of /100 annotations.",
    }


def test_an_id_is_once_in_a_request(bitbucket: FakeBitbucket) -> None:
    """Two failures of one test have one node id."""
    ask(bitbucket, "PUT", REPORT, a_report())

    answer = ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(1), an_annotation(1)])

    assert answer.status == 400
    assert "n-1 is twice" in bitbucket.refused[0]


def test_a_report_has_a_thousand_annotations_at_most(bitbucket: FakeBitbucket) -> None:
    """Those that were there before count, unless they are sent again."""
    ask(bitbucket, "PUT", REPORT, a_report())
    for start in range(0, 1000, 100):
        ask(
            bitbucket,
            "POST",
            f"{REPORT}/annotations",
            [an_annotation(i) for i in range(start, start + 100)],
        )

    again = ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(999, summary="again")])
    more = ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(1000)])

    assert (again.status, more.status) == (200, 400)
    assert len(bitbucket.annotations(COMMIT, "gpu-tests")) == 1000


def test_old_annotations_stay_until_the_report_is_deleted(bitbucket: FakeBitbucket) -> None:
    """Nothing says that a new PUT clears them.

    A test that passes now must not stay red from the run before.
    """
    ask(bitbucket, "PUT", REPORT, a_report())
    ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation(1)])
    ask(bitbucket, "PUT", REPORT, a_report(result="PASSED"))
    stale = bitbucket.annotations(COMMIT, "gpu-tests")

    deleted = ask(bitbucket, "DELETE", REPORT)

    assert [entry["external_id"] for entry in stale] == ["n-1"]
    assert deleted.status == 204
    assert bitbucket.annotations(COMMIT, "gpu-tests") == []
    assert ask(bitbucket, "GET", REPORT).status == 404
    assert bitbucket.refused == []


def test_annotations_want_their_report_first(bitbucket: FakeBitbucket) -> None:
    """And one at an address of its own has the id of that address."""
    early = ask(bitbucket, "POST", f"{REPORT}/annotations", [an_annotation()])
    ask(bitbucket, "PUT", REPORT, a_report())
    elsewhere = ask(bitbucket, "PUT", f"{REPORT}/annotations/n-2", an_annotation(1))

    assert (early.status, elsewhere.status) == (404, 400)
    assert len(bitbucket.refused) == 2


# Bitbucket: comments.


@pytest.mark.parametrize(
    ("body", "page_of_html"),
    [
        ({"content": {"raw": "x" * 32769}}, True),
        ({"content": {"raw": " "}}, False),
        ({"content": {}}, False),
        ({"content": {"raw": "x", "html": "<b>x</b>"}}, False),
        ({"body": "x"}, False),
    ],
    ids=["too long", "blank", "empty", "html", "as on another host"],
)
def test_bitbucket_refuses_a_comment(
    bitbucket: FakeBitbucket, body: dict[str, Any], page_of_html: bool
) -> None:
    """One that is too long is answered with a page for people, which is not JSON."""
    answer = ask(bitbucket, "POST", COMMENTS, body)

    assert answer.status == 400
    assert (answer.body == "<h1>Bad Request (400)</h1>") == page_of_html
    assert bitbucket.comments == []
    assert len(bitbucket.refused) == 1


def test_comments_come_in_pages(bitbucket: FakeBitbucket) -> None:
    """A comment of ours that is not on the first page is found by following `next`.

    Without that it would be made a second time.
    """
    for number in range(25):
        bitbucket.add_comment(f"remark {number}")
    ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "ours"}})

    pages = [ask(bitbucket, "GET", COMMENTS)]
    while "next" in pages[-1].body:
        pages.append(ask(bitbucket, "GET", pages[-1].body["next"].removeprefix(bitbucket.url)))

    assert [len(page_answer.body["values"]) for page_answer in pages] == [10, 10, 6]
    assert pages[-1].body["values"][-1]["content"]["raw"] == "ours"
    assert [
        ask(bitbucket, "GET", f"{COMMENTS}?{query}").status
        for query in ("pagelen=100", "pagelen=101", "page=0", "q=a")
    ] == [
        200,
        400,
        400,
        400,
    ]


def test_a_comment_is_changed_by_its_author_alone(bitbucket: FakeBitbucket) -> None:
    """Somebody who quotes our marker must not see that comment overwritten.

    A deleted one stays in the list.
    """
    theirs = bitbucket.add_comment("quoting the marker")
    ours = ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "ours"}}).body["id"]

    answers = [
        ask(bitbucket, "PUT", f"{COMMENTS}/{theirs}", {"content": {"raw": "mine now"}}),
        ask(bitbucket, "DELETE", f"{COMMENTS}/{theirs}"),
        ask(bitbucket, "PUT", f"{COMMENTS}/{ours}", {"content": {"raw": "new"}}),
        ask(bitbucket, "GET", f"{COMMENTS}/{ours}"),
        ask(bitbucket, "DELETE", f"{COMMENTS}/{ours}"),
        ask(bitbucket, "PUT", f"{COMMENTS}/{ours}", {"content": {"raw": "again"}}),
        ask(bitbucket, "PUT", f"{COMMENTS}/999", {"content": {"raw": "none"}}),
    ]

    assert [answer.status for answer in answers] == [403, 403, 200, 200, 204, 404, 404]
    assert answers[3].body["content"]["raw"] == "new"
    listed = ask(bitbucket, "GET", COMMENTS).body["values"]
    assert [(comment["content"]["raw"], comment["deleted"]) for comment in listed] == [
        ("quoting the marker", False),
        ("", True),
    ]


def test_bitbuckets_environment_is_that_of_a_step(bitbucket: FakeBitbucket, tmp_path: Path) -> None:
    """A branch without a pull request and without a token is the most common step of all."""
    full = bitbucket.environ(pull_request=True, token=True, clone_dir=str(tmp_path))
    bare = bitbucket.environ(pull_request=False, token=False)

    assert full["BITBUCKET_STEP_UUID"] == STEP_UUID
    assert STEP_UUID[0] + STEP_UUID[-1] == "{}"
    assert (full["BITBUCKET_PR_ID"], full["BITBUCKET_TOKEN"], full["BITBUCKET_CLONE_DIR"]) == (
        "7",
        bitbucket.token,
        str(tmp_path),
    )
    assert set(full) - set(bare) == {
        "BITBUCKET_PR_ID",
        "BITBUCKET_PR_DESTINATION_BRANCH",
        "BITBUCKET_PR_DESTINATION_COMMIT",
        "BITBUCKET_TOKEN",
        "BITBUCKET_CLONE_DIR",
    }
    assert bitbucket.environ(email=True)["BITBUCKET_EMAIL"] == bitbucket.email


# GitHub.


@pytest.mark.parametrize(
    ("headers", "code", "message"),
    [
        ({"Authorization": ""}, 401, "Requires authentication"),
        ({"Authorization": "Bearer wrong"}, 401, "Bad credentials"),
    ],
)
def test_github_lets_nobody_in_without_good_credentials(
    github: FakeGitHub, headers: dict[str, str], code: int, message: str
) -> None:
    """And says so in its own words."""
    answer = ask(github, "POST", f"{HUB}/statuses/{COMMIT}", {"state": "success"}, **headers)

    assert (answer.status, answer.body["message"]) == (code, message)
    assert len(github.refused) == 1


def test_github_wants_to_know_who_asks(github: FakeGitHub) -> None:
    """Without a User-Agent the real one answers with a page, before anything else."""
    answer = ask(github, "GET", f"{HUB}/issues/7/comments", User_Agent="")

    assert answer.status == 403
    assert "User-Agent" in answer.body
    assert github.refused


def test_a_forks_token_may_only_read(github: FakeGitHub) -> None:
    """That a fork cannot write is no fault of the client's, so it is not counted as one.

    The client has to cope with it.
    """
    reads = ask(
        github, "GET", f"{HUB}/issues/7/comments", Authorization=f"token {github.fork_token}"
    )
    writes = ask(
        github,
        "POST",
        f"{HUB}/statuses/{COMMIT}",
        {"state": "success"},
        Authorization=f"Bearer {github.fork_token}",
    )
    github.read_only = True
    with_ours = ask(github, "POST", f"{HUB}/statuses/{COMMIT}", {"state": "success"})

    assert (reads.status, writes.status, with_ours.status) == (200, 403, 403)
    assert writes.body["message"] == "Resource not accessible by integration"
    assert github.refused == []
    assert github.statuses == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"/statuses/{COMMIT}", {"state": "passed"}),
        ("POST", f"/statuses/{COMMIT}", {"description": "no state"}),
        ("POST", f"/statuses/{COMMIT}", {"state": "error", "description": "d" * 141}),
        ("POST", f"/statuses/{COMMIT}", {"state": "error", "target_url": "gpu.example.com"}),
        ("POST", f"/statuses/{COMMIT}", {"state": "error", "url": LINK}),
        ("POST", f"/statuses/{'b' * 40}", {"state": "error"}),
        ("POST", "/check-runs", {"name": "gpu"}),
        ("POST", "/check-runs", a_check(head_sha="b" * 40)),
        ("POST", "/check-runs", a_check(status="completed")),
        ("POST", "/check-runs", a_check(completed_at="2026-11-02T09:00:00Z")),
        ("POST", "/check-runs", a_check(conclusion="stale")),
        ("POST", "/check-runs", a_check(status="done")),
        ("POST", "/check-runs", a_check(output={"summary": "no title"})),
        ("POST", "/check-runs", a_check(output={"title": "t", "summary": "s" * 65536})),
        (
            "POST",
            "/check-runs",
            a_check(output={"title": "t", "summary": "s", "text": "s" * 65536}),
        ),
        (
            "POST",
            "/check-runs",
            a_check(
                actions=[{"label": "a", "description": "b", "identifier": str(i)} for i in range(4)]
            ),
        ),
        ("POST", "/check-runs", marked(end_line=2)),
        ("POST", "/check-runs", marked(end_line=4, start_column=1)),
        ("POST", "/check-runs", marked(start_line=0, end_line=0)),
        ("POST", "/check-runs", marked(annotation_level="error")),
        ("POST", "/check-runs", marked(title="t" * 256)),
        ("POST", "/check-runs", marked(message="ü" * 40_000)),
        ("POST", "/check-runs", marked(raw_details="r" * 65_537)),
        ("POST", "/check-runs", marked(path="/a.py")),
        ("POST", "/issues/7/comments", {"body": "x" * 65537}),
        ("POST", "/issues/7/comments", {"body": "\n"}),
        ("POST", "/issues/7/comments", {"content": {"raw": "as on another host"}}),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_github_refuses(github: FakeGitHub, method: str, path: str, body: dict[str, Any]) -> None:
    """Everything it is known to answer with 422."""
    answer = ask(github, method, HUB + path, body)

    assert answer.status == 422
    assert answer.body["message"]
    assert len(github.refused) == 1
    assert (github.statuses, github.check_runs, github.comments) == ([], [], [])


def test_a_status_belongs_on_the_head_of_the_pull_request(github: FakeGitHub) -> None:
    """GitHub takes one for the merge commit, which GITHUB_SHA names, and nobody ever sees it."""
    ask(
        github,
        "POST",
        f"{HUB}/statuses/{COMMIT}",
        {"state": "pending", "context": "gpu", "target_url": LINK},
    )
    fine = list(github.refused)

    answer = ask(
        github, "POST", f"{HUB}/statuses/{MERGE_COMMIT}", {"state": "success", "context": "gpu"}
    )

    assert answer.status == 201
    assert fine == []
    assert "nobody who looks at the pull request sees it" in github.refused[0]
    assert [
        entry["state"] for entry in ask(github, "GET", f"{HUB}/commits/{COMMIT}/statuses").body
    ] == ["pending"]


def test_annotations_of_a_check_run_are_added_by_fifties(github: FakeGitHub) -> None:
    """They append: who sends them all again has them twice."""
    output = marked()["output"]
    fifty = {**output, "annotations": output["annotations"] * 50}
    created = ask(
        github, "POST", f"{HUB}/check-runs", a_check(status="in_progress", output=fifty)
    ).body
    more = ask(
        github,
        "PATCH",
        f"{HUB}/check-runs/{created['id']}",
        {"output": output, "conclusion": "failure"},
    )

    too_many = ask(
        github,
        "PATCH",
        f"{HUB}/check-runs/{created['id']}",
        {"output": {**output, "annotations": output["annotations"] * 51}},
    )

    assert (more.status, too_many.status) == (200, 422)
    assert github.check_runs[0]["status"] == "completed"
    assert len(github.check_runs[0]["output"]["annotations"]) == 51
    assert ask(github, "GET", f"{HUB}/commits/{COMMIT}/check-runs").body["total_count"] == 1
    assert ask(github, "PATCH", f"{HUB}/check-runs/999", {"conclusion": "success"}).status == 404


def test_githubs_pages_are_linked_in_a_header(github: FakeGitHub) -> None:
    """Not in the body, as Bitbucket has them."""
    for number in range(31):
        github.add_comment(f"remark {number}")

    first = ask(github, "GET", f"{HUB}/issues/7/comments")
    second = ask(github, "GET", f"{HUB}/issues/7/comments?per_page=30&page=2")

    assert (
        f'<{github.url}{HUB}/issues/7/comments?per_page=30&page=2>; rel="next"'
        in first.headers["link"]
    )
    assert (len(first.body), len(second.body)) == (30, 1)
    assert 'rel="next"' not in second.headers["link"]
    assert ask(github, "GET", f"{HUB}/issues/7/comments?per_page=101").status == 400


def test_a_comment_on_github_is_changed_in_place(github: FakeGitHub) -> None:
    """Ours, and no one else's; and only on the pull request at hand."""
    theirs = github.add_comment("quoting the marker")
    ours = ask(github, "POST", f"{HUB}/issues/7/comments", {"body": "ours"}).body["id"]

    answers = [
        ask(github, "PATCH", f"{HUB}/issues/comments/{ours}", {"body": "new"}),
        ask(github, "PATCH", f"{HUB}/issues/comments/{theirs}", {"body": "mine now"}),
        ask(github, "POST", f"{HUB}/issues/8/comments", {"body": "elsewhere"}),
        ask(github, "GET", f"{HUB}-other/issues/7/comments"),
        ask(github, "DELETE", f"{HUB}/issues/comments/{ours}"),
    ]

    assert [answer.status for answer in answers] == [200, 403, 404, 404, 204]
    assert answers[0].body["body"] == "new"
    assert [comment["body"] for comment in github.comments] == ["quoting the marker"]


def test_github_has_a_second_kind_of_limit(github: FakeGitHub) -> None:
    """A 403 that is to be waited for, unlike the one of a token that may not write."""
    github.fault(("POST", "comments"), secondary_limit(1), status(429))

    limited, throttled = (
        ask(github, "POST", f"{HUB}/issues/7/comments", {"body": "x"}) for _ in range(2)
    )

    assert (limited.status, limited.headers["retry-after"]) == (403, "1")
    assert "secondary rate limit" in limited.body["message"]
    assert throttled.status == 429
    assert github.comments == []


def test_githubs_event_names_the_commit_to_post_to(github: FakeGitHub, tmp_path: Path) -> None:
    """The environment alone names the merge commit, and says nothing of a fork."""
    environ = github.environ(tmp_path, pull_request=True, fork=True)
    event = json.loads(Path(environ["GITHUB_EVENT_PATH"]).read_text())

    assert environ["GITHUB_SHA"] == MERGE_COMMIT
    assert event["pull_request"]["head"]["sha"] == COMMIT
    assert event["pull_request"]["head"]["repo"]["full_name"] == "contributor/aerial"
    assert environ["GITHUB_TOKEN"] == github.fork_token
    assert github.environ(tmp_path, pull_request=False)["GITHUB_SHA"] == COMMIT
    assert "GITHUB_TOKEN" not in github.environ(tmp_path, token=False)


def test_commands_are_read_as_the_runner_reads_them() -> None:
    """An escape that is forgotten cuts a message short or puts it into another field."""
    read = workflow_commands(
        "hello ::error::no\n  ::error file=a.py,line=3,title=50%25%2C a%3A b::one%0Atwo: x, y\n"
        "::unknown::x\n::error no end\n"
    )

    assert read == [
        Command(
            "error", {"file": "a.py", "line": "3", "title": "50%, a: b"}, "one\ntwo: x, y", line=2
        )
    ]


@pytest.mark.parametrize("line", ["::error title=a: b::c::d", "::error title=a::b::message"])
def test_a_colon_that_is_not_escaped_moves_the_message(line: str) -> None:
    """The message begins at the first double colon, wherever that is."""
    (read,) = workflow_commands(line)

    assert read.message in ("c::d", "b::message")


def test_an_escaped_percent_sign_is_not_unescaped_twice() -> None:
    """%250A is what somebody wrote as %0A, not a new line."""
    (read,) = workflow_commands("::notice::%250A")

    assert read.message == "%0A"


@pytest.mark.parametrize(
    "line", ["::error::planted", "log ##[error]planted", "##[warning file=a.py;line=1]planted"]
)
def test_what_a_test_prints_can_be_a_command_unless_commands_are_stopped(line: str) -> None:
    """The output of a test is nobody's to trust.

    Both ways to write a command have to be stopped.
    """
    token = "0b5e3f"

    bare = workflow_commands(line)
    wrapped = workflow_commands(f"::stop-commands::{token}\n{line}\n::{token}::\n::notice::after\n")
    ended_early = workflow_commands(f"::stop-commands::{token}\n::{token}::\n{line}\n")

    assert [entry.message for entry in bare] == ["planted"]
    assert [entry.message for entry in wrapped] == ["after"]
    assert [entry.message for entry in ended_early] == ["planted"]


def test_commands_are_not_stopped_by_a_token_that_is_a_command() -> None:
    """The first ::error:: within would start them again.

    The runner takes no such token, nor an empty one.
    """
    assert (
        len(workflow_commands("::stop-commands::error\n::error::x\n::stop-commands::\n::error::y"))
        == 2
    )


def test_ten_annotations_of_a_kind_are_shown() -> None:
    """The eleventh error is lost without a word, so the summary has to have all."""
    read = workflow_commands(
        "\n".join(f"::{kind}::{number}" for number in range(12) for kind in ("error", "notice"))
    )

    assert [case.shown for case in read if case.name == "error"] == [True] * 10 + [False] * 2
    assert sum(case.shown for case in read) == 20


def test_a_summary_of_more_than_a_mebibyte_is_lost(tmp_path: Path) -> None:
    """GitHub uploads none of it, not the first mebibyte."""
    path = tmp_path / "summary.md"
    path.write_text("ü" * (512 * 1024))
    fits = job_summary(path)
    path.write_text("ü" * (512 * 1024) + ".")

    with pytest.raises(ValueError, match="1048577 bytes"):
        job_summary(path)
    assert len(fits) == 512 * 1024


# GitLab.


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "", "PRIVATE_TOKEN": "wrong"}, 401),
        ({"Authorization": "", "JOB_TOKEN": "glcbt-job-token"}, 401),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"), [(f"{LAB}/statuses/{COMMIT}", {"state": "success"}), (NOTES, {"body": "x"})]
)
def test_gitlab_lets_nobody_write_without_a_projects_token(
    gitlab: FakeGitLab, headers: dict[str, str], code: int, path: str, body: dict[str, str]
) -> None:
    """The token that each job has may read notes, and write nothing."""
    answer = ask(gitlab, "POST", path, body, **headers)

    assert answer.status == code
    assert answer.body == {"message": "401 Unauthorized"}
    assert len(gitlab.refused) == 1


def test_gitlab_takes_either_header(gitlab: FakeGitLab) -> None:
    """And lets a job's own token read."""
    answers = [
        ask(gitlab, "GET", NOTES),
        ask(gitlab, "GET", NOTES, Authorization="", PRIVATE_TOKEN=gitlab.token),
        ask(gitlab, "GET", NOTES, Authorization="", JOB_TOKEN=gitlab.job_token),
    ]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert gitlab.refused == []


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (f"{LAB}/statuses/{COMMIT}", {"name": "gpu"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failure"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "description": "d" * 256}, 400),
        (
            f"{LAB}/statuses/{COMMIT}",
            {"state": "failed", "target_url": "https://a.example/" + "u" * 255},
            400,
        ),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "target_url": "javascript:alert(1)"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "pipeline_id": "12x"}, 400),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "pipeline_id": 1}, 404),
        (f"{LAB}/statuses/{COMMIT}", {"state": "failed", "colour": "red"}, 400),
        (f"{LAB}/statuses/{'b' * 40}", {"state": "failed"}, 404),
        (f"/api/v4/projects/43/statuses/{COMMIT}", {"state": "failed"}, 404),
        (NOTES, {"body": "x" * 1_000_001}, 400),
        (NOTES, {"body": ""}, 400),
        (NOTES, {}, 400),
        (NOTES.replace("/7/", "/8/"), {"body": "x"}, 404),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_gitlab_refuses(gitlab: FakeGitLab, path: str, body: dict[str, Any], code: int) -> None:
    """Everything it is known to answer so."""
    answer = ask(gitlab, "POST", path, body)

    assert answer.status == code
    assert len(gitlab.refused) == 1
    assert (gitlab.statuses, gitlab.notes) == ([], [])


def test_gitlab_takes_a_form_too(gitlab: FakeGitLab) -> None:
    """With the project by its path.

    JSON that does not say that it is JSON is a form without fields.
    """
    path = f"/api/v4/projects/{quote('acme/aerial', safe='')}/statuses/{COMMIT}"
    form = "application/x-www-form-urlencoded"

    posted = ask(
        gitlab,
        "POST",
        path,
        "state=running&name=gpu&pipeline_id=5512&coverage=81.5",
        Content_Type=form,
    )
    unsaid = ask(gitlab, "POST", path, '{"state": "running"}', Content_Type=form)

    assert (posted.status, unsaid.status) == (201, 400)
    assert (
        gitlab.statuses[0]["status"],
        gitlab.statuses[0]["pipeline_id"],
        gitlab.statuses[0]["coverage"],
    ) == ("running", 5512, 81.5)
    assert gitlab.external_pipelines == 0


@pytest.mark.parametrize("old", [False, True])
def test_an_old_gitlab_refuses_to_hear_the_same_state_again(old: bool) -> None:
    """A client has to bear it, so it is not held against it."""
    with FakeGitLab(old=old) as host:
        answers = [
            ask(host, "POST", f"{LAB}/statuses/{COMMIT}", {"state": state, "name": "gpu"})
            for state in ("running", "running", "success")
        ]

    assert [answer.status for answer in answers] == [201, 400 if old else 201, 201]
    assert not old or answers[1].body["message"].startswith(
        "Cannot transition status via :run from :running"
    )
    assert [entry["status"] for entry in host.statuses] == ["success"]
    assert host.external_pipelines == 1
    assert host.refused == []


def test_gitlabs_pages_are_counted_in_headers(gitlab: FakeGitLab) -> None:
    """The newest first, so a marker may be on the last page."""
    ours = ask(gitlab, "POST", NOTES, {"body": "ours"}).body["id"]
    for number in range(20):
        gitlab.add_note(f"remark {number}", system=number == 0)

    first = ask(gitlab, "GET", NOTES)
    second = ask(gitlab, "GET", f"{NOTES}?page={first.headers['x-next-page']}")

    assert [entry["id"] for entry in second.body] == [ours]
    assert (len(first.body), second.headers["x-next-page"]) == (20, "")
    assert ask(gitlab, "GET", f"{NOTES}?per_page=101").status == 400


def test_a_note_is_changed_by_its_author_alone(gitlab: FakeGitLab) -> None:
    """As everywhere."""
    theirs = gitlab.add_note("quoting the marker")
    ours = ask(gitlab, "POST", NOTES, {"body": "ours"}).body["id"]

    answers = [
        ask(gitlab, "PUT", f"{NOTES}/{note}", {"body": "new"}) for note in (ours, theirs, 999)
    ]

    assert [answer.status for answer in answers] == [200, 403, 404]
    assert [note["body"] for note in gitlab.notes] == ["quoting the marker", "new"]


def test_gitlabs_environment_is_that_of_a_job(gitlab: FakeGitLab, tmp_path: Path) -> None:
    """A link to the job never leads to where the API is."""
    environ = gitlab.environ(tmp_path)

    assert environ["CI_API_V4_URL"] == f"{gitlab.url}/api/v4"
    assert environ["CI_JOB_URL"].startswith("https://gitlab.example.com/acme/aerial/-/jobs/")
    assert "CI_MERGE_REQUEST_IID" not in gitlab.environ(tmp_path, merge_request=False)
    assert "GITLAB_TOKEN" not in gitlab.environ(tmp_path, token=False)


@pytest.mark.parametrize(
    "report",
    [
        {"gpu": {"external_link": {"label": "a", "url": LINK}}},
        {"gpu": [{"external_link": {"label": "a"}}]},
        {"gpu": [{"external_link": {"label": "a", "url": "gpu.example.com"}}]},
        {"gpu": [{"link": {"label": "a", "url": LINK}}]},
        [],
    ],
    ids=json.dumps,
)
def test_gitlab_refuses_an_annotations_report(tmp_path: Path, report: object) -> None:
    """It says nothing of it in the job, and the link is simply not there."""
    (tmp_path / "links.json").write_text(json.dumps(report))

    with pytest.raises(ValueError, match=r"links\.json"):
        annotations_report(tmp_path / "links.json")


def test_gitlab_reads_an_annotations_report(tmp_path: Path) -> None:
    """The one way to a link on the job's page that needs no token."""
    (tmp_path / "links.json").write_text(
        json.dumps({"gpu": [{"external_link": {"label": "Session", "url": LINK}}]})
    )

    assert annotations_report(tmp_path / "links.json") == [JobLink("gpu", "Session", LINK)]


# JUnit files.


def junit(tmp_path: Path, cases: str, head: str = "", **counts: int) -> Path:
    numbers = {"tests": 1, "failures": 0, "errors": 0, "skipped": 0, **counts}
    attributes = " ".join(f'{name}="{count}"' for name, count in numbers.items())
    path = tmp_path / "junit.xml"
    path.write_text(
        f'<testsuites name="pytest tests"><testsuite name="gpu" {attributes} time="1.5">'
        f"{head}{cases}</testsuite></testsuites>"
    )
    return path


def case(inner: str = "", name: str = "test_it", more: str = "") -> str:
    return f'<testcase classname="tests.test_a" name="{name}" time="0.1" {more}>{inner}</testcase>'


FAILURE = '<failure message="assert 0">tests/test_a.py:12: AssertionError</failure>'
ERROR = '<error type="gpu.InfrastructureError" message="node lost">the node went away</error>'
PLACE = 'file="tests/test_a.py" line="12"'
PROPERTIES = '<properties><property name="gpu" value="A10G"/></properties>'


@pytest.mark.parametrize(
    ("cases", "head", "counts"),
    [
        (case(), "", {}),
        (case(more=PLACE), PROPERTIES, {}),
        (
            case(
                FAILURE + "<system-out>Session: x</system-out><system-err>e</system-err>",
                more=PLACE,
            ),
            "",
            {"failures": 1},
        ),
        (case(ERROR), "", {"errors": 1}),
        (case('<skipped type="pytest.skip" message="no GPU">a.py:1</skipped>'), "", {"skipped": 1}),
        (case(PROPERTIES + FAILURE), "", {"failures": 1}),
        ("", "", {"tests": 0}),
    ],
)
def test_a_good_file_fits_the_enriched_schema(
    tmp_path: Path, cases: str, head: str, counts: dict[str, int]
) -> None:
    """A refusal means nothing if nothing is ever taken."""
    assert schema_errors(junit(tmp_path, cases, head, **counts)) == []


@pytest.mark.parametrize(
    ("cases", "head", "counts"),
    [
        (case(more='file="/work/tests/test_a.py" line="12"'), "", {}),
        (case(more='file="../test_a.py"'), "", {}),
        (case(more='line="0"'), "", {}),
        (case(more='lineno="3"'), "", {}),
        (case(FAILURE + ERROR), "", {"errors": 1}),
        (case("<system-out>first</system-out>" + FAILURE), "", {"failures": 1}),
        (case("<system-err/><system-out/>"), "", {}),
        (case('<failure message="">text</failure>'), "", {"failures": 1}),
        (case("<failure>text</failure>"), "", {"failures": 1}),
        (case("<error>text</error>"), "", {"errors": 1}),
        (case(name=""), "", {}),
        ('<testcase name="test_it" time="1"/>', "", {}),
        ('<testcase classname="a" name="test_it" time="-1"/>', "", {}),
        ('<testcase classname="a" name="test_it" time="nan"/>', "", {}),
        (case() + PROPERTIES, "", {}),
        (ERROR, "", {"tests": 0}),
        (case(FAILURE), "", {}),
        (case(), "", {"tests": 2}),
        (case(), "<properties/>", {}),
    ],
)
def test_a_bad_file_does_not_fit_the_enriched_schema(
    tmp_path: Path, cases: str, head: str, counts: dict[str, int]
) -> None:
    """Each of them is something that one reader or another misreads without a word."""
    assert schema_errors(junit(tmp_path, cases, head, **counts)) != []


@pytest.mark.parametrize(
    ("inner", "more", "good"),
    [
        ("", "", True),
        (FAILURE, "", True),
        ("", 'file="a.py"', False),
        ("", 'line="3"', False),
        (PROPERTIES, "", False),
    ],
)
def test_the_strict_schema_has_nothing_that_pytest_does_not_write(
    tmp_path: Path, inner: str, more: str, good: bool
) -> None:
    """For readers that refuse what they do not know."""
    path = junit(tmp_path, case(inner, more=more), failures=int(inner == FAILURE))

    assert (schema_errors(path, "xunit2") == []) == good


def test_every_reader_reads_a_plain_file(tmp_path: Path) -> None:
    """The same tests, with the same names, whoever reads.

    Only a few tell an error from a failure.
    """
    skipped = case('<skipped message="no GPU"/>', "test_s")
    path = junit(
        tmp_path,
        case() + case(FAILURE, "test_f") + case(ERROR, "test_e") + skipped,
        tests=4,
        failures=1,
        errors=1,
        skipped=1,
    )

    read = {
        name: [(case.name, case.outcome) for case in reader(path)]
        for name, reader in READERS.items()
    }

    apart = {"gitlab", "enricomi"}
    for name, cases in read.items():
        error = "error" if name in apart else "failed"
        assert cases == [
            ("test_it", "passed"),
            ("test_f", "failed"),
            ("test_e", error),
            ("test_s", "skipped"),
        ], name


def test_bitbucket_reads_a_hundred_failures_and_the_start_of_each(tmp_path: Path) -> None:
    """The cause and the link to the session have to be in the first two thousand characters."""
    failing = "".join(
        case(f'<failure message="no">{"x" * 3000}</failure>', f"test_{n}") for n in range(101)
    )

    read = READERS["bitbucket"](junit(tmp_path, failing + case()))

    assert [case.outcome for case in read] == ["failed"] * 100 + ["passed"]
    assert len(read[0].text) == 2000


def test_bitbucket_finds_files_in_folders_of_some_names_and_not_too_deep(tmp_path: Path) -> None:
    """A file elsewhere is simply not in the Tests tab."""
    paths = ["test-results/a.xml", "a/b/test-reports/a.xml", "TestResults/a/b/c.xml"]
    for name in [
        *paths,
        "a/b/c/test-results/a.xml",
        "results/a.xml",
        "a.xml",
        "test-results/a.json",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert {
        str(path.relative_to(tmp_path)).replace(os.sep, "/") for path in bitbucket_finds(tmp_path)
    } == set(paths)


def test_gitlab_counts_the_first_of_one_name(tmp_path: Path) -> None:
    """pytest writes a failure and an error in teardown as two cases: the second is lost there."""
    path = junit(tmp_path, case(FAILURE, more=PLACE) + case(ERROR, more=PLACE))

    assert gitlab_junit(path) == [
        Case(
            "tests.test_a",
            "test_it",
            "failed",
            "tests/test_a.py",
            message="assert 0",
            text="tests/test_a.py:12: AssertionError",
        )
    ]


def test_jenkins_reads_suites_in_suites_and_an_error_of_a_whole_one(tmp_path: Path) -> None:
    """It alone reads the error of a suite, which is why nothing important may be there."""
    inner = (
        f'<testsuite name="inner"><testcase name="test_i">{FAILURE}{ERROR}</testcase></testsuite>'
    )

    read = jenkins(junit(tmp_path, ERROR + case() + inner))

    assert [(case.classname, case.name, case.outcome, case.message) for case in read] == [
        ("gpu", "<init>", "failed", "node lost"),
        ("tests.test_a", "test_it", "passed", ""),
        ("inner", "test_i", "failed", "node lost"),
    ]


@pytest.mark.parametrize("attributes", ['name="a"', 'classname="b"', 'classname="" name="a"'])
def test_buildkite_wants_classname_and_name(tmp_path: Path, attributes: str) -> None:
    """It takes the file or leaves it."""
    with pytest.raises(UnreadableError, match="without classname or name"):
        READERS["buildkite"](junit(tmp_path, f"<testcase {attributes}/>"))


def test_enricomi_reads_file_and_line_of_the_testcase(tmp_path: Path) -> None:
    """And the graver of two results."""
    (read,) = enricomi(junit(tmp_path, case(FAILURE + ERROR, more=PLACE)))

    assert (read.file, read.line, read.outcome, read.message) == (
        "tests/test_a.py",
        12,
        "error",
        "node lost",
    )


@pytest.mark.parametrize(
    ("more", "inner", "file", "line"),
    [
        (PLACE, FAILURE, "tests/test_a.py", 12),
        ('file="b.py" line="0"', FAILURE, "b.py", 12),
        ("", FAILURE, "tests/test_a.py", 12),
        ("", '<failure file="c.py" line="4"/>', "c.py", 4),
        ("", "<failure>nothing</failure>", "", None),
    ],
)
def test_mikepenz_takes_file_and_line_from_wherever_they_are(
    tmp_path: Path, more: str, inner: str, file: str, line: int | None
) -> None:
    """A line of 0, as pytest counts the first one, is none to it."""
    (read,) = mikepenz(junit(tmp_path, case(inner, more=more)))

    assert (read.file, read.line) == (file, line)


def test_mikepenz_takes_results_of_one_name_for_retries(tmp_path: Path) -> None:
    """One that passed in the end has passed; the same name in another file is another test."""
    read = mikepenz(
        junit(tmp_path, case(FAILURE, more=PLACE) + case(more=PLACE) + case(more='file="b.py"'))
    )

    assert [(case.outcome, case.retries) for case in read] == [("passed", 1), ("passed", 0)]


@pytest.mark.parametrize("name", ["circleci", "azure", "dorny"])
def test_these_readers_know_no_line(tmp_path: Path, name: str) -> None:
    """So the place of a failure has to be in its text."""
    (read,) = READERS[name](junit(tmp_path, case(FAILURE, more=PLACE)))

    assert read.line is None
    assert read.message == "assert 0"


def test_another_xml_file_is_no_junit_file(tmp_path: Path) -> None:
    """A coverage report in the same folder, for instance."""
    (tmp_path / "coverage.xml").write_text("<coverage/>")

    with pytest.raises(UnreadableError, match="no JUnit file"):
        READERS["gitlab"](tmp_path / "coverage.xml")


# What a reviewer sees.


def test_bitbuckets_page_shows_what_was_published(bitbucket: FakeBitbucket) -> None:
    """Status, report, annotations by place, and comments without any tag of theirs."""
    ask(
        bitbucket, "POST", BUILD, a_status(state="FAILED", name="GPU tests", description="2 failed")
    )
    ask(bitbucket, "PUT", REPORT, a_datum("DURATION", 83_000) | {"title": "GPU <tests>"})
    ask(
        bitbucket,
        "POST",
        f"{REPORT}/annotations",
        [an_annotation(1, path="b.py", line=2), an_annotation(2, path="a.py", link=LINK)],
    )
    bitbucket.add_comment("**two** failed <details><!-- marker -->")
    deleted_id = ask(bitbucket, "POST", COMMENTS, {"content": {"raw": "old"}}).body["id"]
    ask(bitbucket, "DELETE", f"{COMMENTS}/{deleted_id}")

    shown = page(bitbucket)

    for part in (
        "2 failed",
        LINK,
        "1m 23s",
        "GPU &lt;tests&gt;",
        "<strong>two</strong>",
        "&lt;details&gt;&lt;!-- marker",
        "was deleted",
    ):
        assert part in shown
    assert shown.index("a.py") < shown.index("b.py:2")


def test_githubs_page_shows_checks_summary_and_annotations(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """The last status of each context, and what the runner made of the step."""
    summary = Path(github.environ(tmp_path)["GITHUB_STEP_SUMMARY"])
    summary.write_text("| test | s |\n|---|--:|\n| `a` | 1 |\n")
    for state in ("pending", "error"):
        ask(
            github,
            "POST",
            f"{HUB}/statuses/{COMMIT}",
            {"state": state, "context": "gpu", "description": f"it is {state}"},
        )
    ask(github, "POST", f"{HUB}/check-runs", marked(message="<b>no</b>"))
    ask(
        github,
        "POST",
        f"{HUB}/issues/7/comments",
        {"body": "<!-- marker -->\n<details><summary>All</summary>\n\n- one\n\n</details>"},
    )

    shown = page(github, stdout="::error file=c.py,line=4,title=test_c::assert 0\n")

    for part in (
        "it is error",
        "c.py:4",
        "a.py:3",
        "&lt;b&gt;no&lt;/b&gt;",
        "<td><code>a</code></td>",
        "<details><summary>All",
        "<li>one</li>",
    ):
        assert part in shown
    assert "it is pending" not in shown
    assert "marker" not in shown


def test_gitlabs_page_shows_status_note_and_links(gitlab: FakeGitLab, tmp_path: Path) -> None:
    """The link of the annotations report is on the job's page alone."""
    ask(
        gitlab,
        "POST",
        f"{LAB}/statuses/{COMMIT}",
        {"state": "failed", "name": "gpu", "target_url": LINK, "description": "2 failed"},
    )
    ask(gitlab, "POST", NOTES, {"body": "## Two *failed*"})
    (tmp_path / "links.json").write_text(
        json.dumps({"gpu": [{"external_link": {"label": "Session", "url": f"{LINK}/log"}}]})
    )

    shown = page(gitlab, report=tmp_path / "links.json")

    for part in (
        "2 failed",
        f'href="{LINK}"',
        "<h2>Two <em>failed</em></h2>",
        f'href="{LINK}/log">Session</a>',
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("kind", "content", "shown"),
    [
        ("BOOLEAN", True, "Yes"),
        ("DATE", 1_793_000_000_000, "26 Oct 2026, 07:33"),
        ("DURATION", 3_723_000, "1h 2m 3s"),
        ("LINK", {"text": "a<b", "href": LINK}, f'<a href="{LINK}">a&lt;b</a>'),
        ("NUMBER", 1234, "1,234"),
        ("PERCENTAGE", 99.5, "99.5%"),
        ("TEXT", "<b>", "&lt;b&gt;"),
        ("", 3, "3"),
    ],
)
def test_a_data_field_is_shown_by_its_type(kind: str, content: Any, shown: str) -> None:
    """A duration in seconds would look a thousand times too short here, as it would there."""
    assert value({"type": kind, "value": content}) == shown


def test_a_duration_leaves_out_what_is_zero_before_it() -> None:
    """As Bitbucket writes it."""
    assert [duration(ms) for ms in (0, 59_999, 60_000, 3_600_000)] == [
        "0s",
        "59s",
        "1m 0s",
        "1h 0m 0s",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b_c and `d*e*` *f*", "<p>a_b_c and <code>d*e*</code> <em>f</em></p>"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("[x](javascript:alert(1))", "<p>x</p>"),
        (
            "[x](https://a.example/?a=1&b=%22)",
            '<p><a href="https://a.example/?a=1&amp;b=%22">x</a></p>',
        ),
        ("[](#gpu-ci:key)", '<p><a href="#gpu-ci:key"></a></p>'),
        ('<b onclick="x()">y</b>', "<p><b>y</b></p>"),
        ("```\n<a>\n```", '<pre><code class="">&lt;a&gt;</code></pre>'),
        ("- a\n  - b\n- c", "<ul><li>a\n<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("a\\|b <!-- c -->", "<p>a|b </p>"),
        (
            "| a |\n|---|\n| `x\\|y` |",
            "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td><code>x|y</code></td></tr></tbody></table>",
        ),
        (
            "<details>\n**not bold**\n\n**bold**",
            "<details>\n**not bold**\n<p><strong>bold</strong></p>",
        ),
    ],
)
def test_markdown_is_rendered_and_nothing_gets_through(text: str, expected: str) -> None:
    """Names of tests hold every character there is.

    What a reviewer would see is seen here first.
    """
    assert rendered(text, tags=True) == expected
