"""The fake Bitbucket: credentials, the proxy of a step, build statuses."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.hosts import FakeBitbucket
from tests.hosts.bitbucket import REPOSITORY_UUID
from tests.unit.hosts.rig import (
    BUCKET,
    BUILD,
    COMMENTS,
    COMMIT,
    LINK,
    REPORT,
    a_report,
    a_status,
    an_annotation,
    ask,
    through,
)


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
    answer = ask(bitbucket, method, address, a_report(), endpoint="proxy")

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
