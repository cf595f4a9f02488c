"""A host that refuses: a trouble with its remedy, and the other targets are updated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import FakeBitbucket, Fault, garbage, html, status
from tests.unit.publish.faults import (
    AGAIN,
    COMMENTS,
    NAMES,
    PLACES,
    WORDS,
    Place,
    each_place,
    publish,
    tags,
)
from tests.unit.publish.rig import KINDS, as_ended, step


def remedy(place: Place, code: int) -> str:
    """The part of a remedy that has to be there."""
    match place.kind, code:
        case "bitbucket", 401:
            return "create a new repository access token"
        case "bitbucket", 403:
            return "the scope pullrequest:write" if place in COMMENTS else "the scope repository"
        case "bitbucket", 404:
            return (
                "is there a pull request 7 in acme/aerial"
                if place in COMMENTS
                else "does acme/aerial have the commit"
            )
        case "github", 401:
            return "pass ${{ github.token }} to the step"
        case "github", 403 | 404:
            right = {"commit status": "statuses: write", "check run": "checks: write"}.get(
                place.target, "pull-requests: write"
            )
            return f"add `{right}` to the job's `permissions`"
        case "gitlab", 401 | 403 | 404:
            return "a project access token with the scope api"
    return AGAIN


@each_place
@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422])
def test_a_refusal_is_said_with_its_remedy_and_hinders_no_other_surface(
    place: Place, code: int, tmp_path: Path
) -> None:
    """A token without one scope still sets the status.

    And the reader needs the host's words, not only ours.
    """
    with KINDS[place.kind].make() as host:
        body = host.error(code, WORDS).body

    result = publish(place, tmp_path, Fault(code=code, body=body, served=False))

    assert result.targets == place.others
    assert result.trouble.startswith(
        f"{NAMES[place.kind]}: the {place.target} was not taken: {code}: {WORDS}\n  remedy: "
    )
    assert remedy(place, code) in result.trouble
    assert (result.requests, result.refused) == (1, [])


@pytest.mark.parametrize("place", [place for place in PLACES if place.kind == "bitbucket"], ids=str)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {
                "type": "error",
                "error": {"message": "key: too long", "fields": {"key": ["at most 40"]}},
            },
            "400: key: too long; key: at most 40",
        ),
        ({"error": {"fields": {"url": ["Enter a valid URL."]}}}, "400: url: Enter a valid URL."),
        (
            {"code": 400, "message": "Bulk upload supports a maximum of /100 annotations."},
            "400: Bulk upload supports a maximum of /100",
        ),
        (
            {
                "key": "report-service.general.bad-request",
                "message": "The summary field is long.",
                "arguments": {},
            },
            "400: The summary field",
        ),
    ],
    ids=["form", "form without a message", "bulk", "insights"],
)
def test_each_of_bitbuckets_shapes_of_an_error_is_understood(
    place: Place, body: Any, words: str, tmp_path: Path
) -> None:
    """Three services behind one address answer, each in its way."""
    result = publish(place, tmp_path, Fault(code=400, body=body, served=False))

    assert words in result.trouble
    assert not re.search(r"[{}\[\]]", result.trouble)


@each_place
@pytest.mark.parametrize("code", [400, 403])
def test_of_an_error_page_only_the_words_are_shown(place: Place, code: int, tmp_path: Path) -> None:
    """A load balancer in front of the host answers people."""
    result = publish(place, tmp_path, html(code))

    assert f"{code}: " in result.trouble
    assert f"({code})" in result.trouble
    assert "remedy: " in result.trouble
    assert tags(result.trouble) == []
    assert result.targets == place.others


@each_place
def test_where_there_is_nothing_to_read_that_is_said(place: Place, tmp_path: Path) -> None:
    """An empty answer is still an answer."""
    result = publish(place, tmp_path, Fault(code=400, body="", served=False))

    assert "400: no reason was given" in result.trouble


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", KINDS)
def test_a_redirect_is_a_trouble_and_its_target_never_sees_the_token(
    kind: str, code: int, tmp_path: Path
) -> None:
    """An attacker who can make the host redirect must not get the credential.

    A POST that became a GET told nobody.
    """
    with FakeBitbucket() as elsewhere:
        target = {"Location": f"{elsewhere.url}/2.0/taken"}
        places = [place for place in PLACES if place.kind == kind]

        results = [
            publish(place, tmp_path, Fault(code=code, headers=target, body="", served=False))
            for place in places
        ]

        assert elsewhere.requests == []
    assert [result.targets for result in results] == [place.others for place in places]
    assert all(f"{code}: " in result.trouble and "remedy: " in result.trouble for result in results)


def test_a_surface_that_cannot_be_read_first_is_a_trouble_of_its_own(tmp_path: Path) -> None:
    """Listing comments wants another scope than writing one; nothing is written blindly."""
    results = [publish(place.read, tmp_path, status(403)) for place in COMMENTS]

    assert [result.targets for result in results] == [place.others for place in COMMENTS]
    assert all(
        "403: Forbidden" in result.trouble and "remedy: " in result.trouble for result in results
    )
    assert [result.comments for result in results] == [[], [], []]


def test_annotations_that_are_refused_are_said_and_the_verdict_is_there() -> None:
    """The report itself was taken before them."""
    with FakeBitbucket() as host:
        host.fault(
            ("POST", "/annotations"),
            Fault(code=400, body={"code": 400, "message": WORDS}, served=False),
        )

        updated, troubles = step(host.environ(token=False)).finish(as_ended("failed"))

        assert updated == []
        assert [f"400: {WORDS}" in trouble for trouble in troubles] == [True]
        assert [body["result"] for body in host.reports.values()] == ["FAILED"]


@pytest.mark.parametrize(
    "fault",
    [
        status(403),
        garbage(),
        Fault(code=200, body=[], served=False),
        Fault(code=200, body={"values": None}, served=False),
    ],
    ids=["refused", "garbage", "a list", "null"],
)
def test_old_annotations_that_cannot_be_listed_do_not_cost_the_new_ones(fault: Fault) -> None:
    """Nobody promises that the proxy lets them be read."""
    with FakeBitbucket() as host:
        host.fault(("GET", "/annotations"), fault)

        updated, troubles = step(host.environ(token=False)).finish(as_ended("failed"))

        assert (updated, troubles, host.refused) == (["Code Insights report"], [], [])
        assert len(host.annotations(host.commit, "gpu-cluster")) == 1
