"""Responses that are cut or slow: repeated where that does no harm, and bounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hosts import FakeBitbucket, Fault, cut, slow, trickle
from tests.hosts.exchange import Answer
from tests.hosts.exchange import Request as HostRequest
from tests.unit.publish.faults import (
    CHECK_RUN,
    COMMENTS,
    NAMES,
    PLACES,
    REPEATABLE,
    at_once,
    publish,
)
from tests.unit.publish.rig import KINDS

CUTS = (
    cut(),
    cut(served=True),
    cut(1),
    cut(10),
)  # without an answer, done or not; and in the middle of one


def test_a_request_that_may_be_repeated_is_repeated_when_its_answer_is_lost(tmp_path: Path) -> None:
    """The same report twice is one report."""
    cases = [(place, fault) for place in REPEATABLE for fault in CUTS]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (result.complete_at(case[0]) and result.requests == 2)
    ] == []


def test_a_comment_whose_answer_was_lost_is_not_posted_twice(tmp_path: Path) -> None:
    """It is looked for before it is sent again.

    Two comments would both have to be deleted by hand.
    """
    cases = [(place, fault) for place in COMMENTS for fault in CUTS]

    results = at_once(lambda case: publish(case[0], tmp_path, case[1]), cases)

    assert [
        (case, result)
        for case, result in results
        if not (result.complete_at(case[0]) and result.requests == 2 - case[1].served)
    ] == []


def test_a_comment_is_sent_again_only_once(tmp_path: Path) -> None:
    """After that nobody knows, and a trouble names it."""
    cases = [
        (place, twice)
        for place in COMMENTS
        for twice in ((cut(), cut()), (cut(), cut(served=True)))
    ]

    for (place, twice), result in at_once(lambda case: publish(case[0], tmp_path, *case[1]), cases):
        assert (result.targets, result.requests) == (place.others, 2), (place, twice)
        assert (
            f"{NAMES[place.kind]}: the {place.target} was not taken: no answer: " in result.trouble
        )
        assert "remedy: " in result.trouble
        assert len(result.comments) <= 1, (place, twice)


@pytest.mark.parametrize("fault", CUTS[1:], ids=["nothing", "one byte", "ten bytes"])
def test_a_check_run_whose_answer_was_lost_is_not_made_twice(fault: Fault, tmp_path: Path) -> None:
    """Each is a line of its own below the pull request, for ever."""
    result = publish(CHECK_RUN, tmp_path, fault)

    assert result.requests == 1
    assert (
        result.complete_at(CHECK_RUN)
        or "GitHub: the check run was not taken: no answer: " in result.trouble
    )


class ForgetfulBitbucket(FakeBitbucket):
    """Posts a comment, and its gateway says once that it did not."""

    forgets = 1

    def _post_comment(self, request: HostRequest) -> Answer:
        answer = super()._post_comment(request)
        self.forgets -= 1
        return answer if self.forgets < 0 else Answer(504, "<html><h1>Gateway Time-out</h1></html>")


def test_a_comment_that_a_gateway_gave_up_on_is_looked_for_before_it_is_sent_again(
    tmp_path: Path,
) -> None:
    """500, 502 and 504 do not say that nothing was done."""
    place = COMMENTS[0]

    result = publish(place, tmp_path, make=ForgetfulBitbucket)

    assert result.complete_at(place)


def test_an_answer_that_does_not_come_holds_nobody_up(tmp_path: Path) -> None:
    """Late, or a byte at a time, in which no single read ever times out."""
    cases = [(place, fault) for place in PLACES for fault in (slow(30), trickle(0.1))]

    for (place, fault), result in at_once(
        lambda case: publish(case[0], tmp_path, case[1], within_s=2), cases
    ):
        text = "\n".join(result.troubles)
        assert result.took_s < 4, (place, fault)
        assert place.target not in result.targets, (place, fault)
        assert f"{NAMES[place.kind]}: the {place.target} " in text, (place, fault)
        assert re.search("given up|no answer|no time left", text), (place, fault)
        assert all("\n  remedy: " in trouble for trouble in result.troubles), (place, fault)


@pytest.mark.parametrize("kind", KINDS)
def test_what_there_was_no_time_left_for_is_named_too(kind: str, tmp_path: Path) -> None:
    """A reader who waits for the commit status has to learn that it will not come.

    It is not enough that the report before it did not.
    """
    first = next(place for place in PLACES if place.kind == kind)

    result = publish(first, tmp_path, slow(30), within_s=1)

    text = "\n".join(result.troubles)
    assert [
        target
        for target in KINDS[kind].targets
        if target not in result.targets and f"the {target} " not in text
    ] == []


def test_an_answer_that_comes_late_but_in_time_is_taken(tmp_path: Path) -> None:
    """Hosts under load answer in seconds."""
    results = at_once(lambda place: publish(place, tmp_path, slow(1)), PLACES)

    assert [
        (place, result)
        for place, result in results
        if not (result.complete_at(place) and result.requests == 1)
    ] == []
