"""The fake Bitbucket: Code Insights reports and annotations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hosts import FakeBitbucket, FakeGitHub, FakeGitLab
from tests.unit.hosts.rig import (
    BUILD,
    COMMENTS,
    COMMIT,
    HUB,
    LAB,
    LINK,
    NOTES,
    REPORT,
    a_datum,
    a_report,
    a_status,
    an_annotation,
    ask,
    marked,
)


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
