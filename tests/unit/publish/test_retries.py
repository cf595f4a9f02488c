"""A host that is busy or broken for a while: tried again, within a bounded time."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.hosts import Fault, html, secondary_limit, status
from tests.unit.publish.faults import (
    AGAIN,
    COMMENTS,
    NAMES,
    PLACES,
    Place,
    at_once,
    each_place,
    publish,
)
from tests.unit.publish.rig import KINDS, step


def test_a_host_that_is_busy_or_broken_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    """It happens in every long week, and a second try half a second later is all it takes."""
    cases = [
        (place, fault)
        for place in PLACES
        for fault in (status(429), status(500), html(502), status(503))
    ]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (result.complete_at(case[0]) and result.requests == 2)
    ] == []
    assert [
        case for case, result in results if case[1].code in (429, 503) and result.took_s < 0.5
    ] == []


def test_a_host_that_says_when_is_asked_then(tmp_path: Path) -> None:
    """Sooner is one more request against the same limit.

    A date has no fractions: three seconds ahead is more than two.
    """
    at_a_time = Fault(
        code=429, headers={"Retry-After": formatdate(time.time() + 3, usegmt=True)}, served=False
    )
    waits = [(status(429, retry_after=1), 1.0), (status(503, retry_after=1), 1.0), (at_a_time, 1.5)]
    cases = [(place, *wait) for place in PLACES for wait in waits]
    cases += [(place, secondary_limit(1), 1.0) for place in PLACES if place.kind == "github"]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (
            result.complete_at(case[0]) and result.requests == 2 and case[2] < result.took_s < 5
        )
    ] == []


@each_place
@pytest.mark.parametrize(
    "fault", [status(429, retry_after=600), status(503, retry_after=600)], ids=["429", "503"]
)
def test_a_host_that_wants_to_be_left_alone_for_long_is_not_waited_for(
    place: Place, fault: Fault, tmp_path: Path
) -> None:
    """A runner is paid by the minute."""
    result = publish(place, tmp_path, fault)

    assert result.took_s < 2
    assert (result.targets, result.requests) == (place.others, 1)
    assert f"{fault.code}: " in result.trouble
    assert AGAIN in result.trouble


def test_how_long_a_host_wants_to_be_left_alone_is_said(tmp_path: Path) -> None:
    """That is when it is worth sending the report again."""
    results = [publish(place, tmp_path, status(429, retry_after=600)) for place in COMMENTS]

    assert ["600 s" in result.trouble for result in results] == [True] * 3


def test_githubs_other_limit_is_not_taken_for_a_missing_permission(tmp_path: Path) -> None:
    """It is a 403 as well.

    A reader who edits the workflow's permissions for it is led astray.
    """
    results = [
        publish(place, tmp_path, secondary_limit(600)) for place in PLACES if place.kind == "github"
    ]

    assert all(
        "secondary rate limit" in result.trouble and AGAIN in result.trouble for result in results
    )
    assert not [result for result in results if "permissions" in result.trouble]


def test_a_host_that_stays_broken_is_given_up_within_the_time(tmp_path: Path) -> None:
    """Tries are bounded by the clock, whatever their number."""
    for place, result in at_once(
        lambda place: publish(place, tmp_path, *[status(503)] * 50, within_s=3), PLACES
    ):
        assert result.took_s < 4, place
        assert "503: Service Unavailable" in result.trouble, place
        assert AGAIN in result.trouble, place
        assert 2 <= result.requests <= 4, place
        assert result.targets == place.others, place


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_is_not_there_is_said_to_be_not_there(kind: str, tmp_path: Path) -> None:
    """The reason is the innermost one.

    What libraries wrap around it repeats the address three times.
    """
    of = KINDS[kind]
    with of.make() as host:
        ci_step = step(of.environ(host, tmp_path), check_run=True)

    updated, troubles = ci_step.finish(within_s=1)

    assert updated == []
    assert "no answer: ConnectionRefusedError" in troubles[0]
    assert all(
        trouble.startswith(f"{NAMES[kind]}: the ") and "remedy: " in trouble for trouble in troubles
    )
    assert [target for target in of.targets if f"the {target} " not in "\n".join(troubles)] == []
