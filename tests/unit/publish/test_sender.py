"""The thread that sends reports: the last report is the last that the host gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.hosts import FakeBitbucket, FakeGitHub, Fault, slow, status
from tests.unit.publish.rig import KINDS, REPORT, as_ended, on_the_way, step


def until(true: Callable[[], object]) -> None:
    """Wait for it, for at most five seconds."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_a_courier_that_is_busy_with_an_old_report_tells_the_new_one_at_the_end(
    bitbucket: FakeBitbucket,
) -> None:
    """The last word has to be the last that the host hears."""
    bitbucket.fault(("PUT", "/reports/"), slow(1))
    ci_step = step(bitbucket.environ())
    ci_step.sender.submit(ci_step.publisher.started(as_ended("running")))
    until(lambda: bitbucket._servers["proxy"]._answering)

    updated, troubles = ci_step.finish()

    assert (updated, troubles, bitbucket.refused) == (list(KINDS["bitbucket"].targets), [], [])
    assert [request.body["result"] for request in bitbucket.seen("PUT", "/reports/")] == [
        "PENDING",
        "PASSED",
    ]
    assert [request.body["state"] for request in bitbucket.seen("POST", "/statuses")][
        -1
    ] == "SUCCESSFUL"


def test_a_courier_does_not_go_on_trying_with_an_old_report(bitbucket: FakeBitbucket) -> None:
    """It waits between tries; the final report need not wait for that."""
    bitbucket.fault(("PUT", "/reports/"), status(503, retry_after=8))
    ci_step = step(bitbucket.environ())
    ci_step.sender.submit(ci_step.publisher.started(as_ended("running")))
    until(lambda: bitbucket.requests)
    began = time.monotonic()

    updated, troubles = ci_step.finish()

    assert time.monotonic() - began < 3
    assert (updated, troubles) == (list(KINDS["bitbucket"].targets), [])


def test_what_was_told_of_an_old_report_is_not_said_to_be_told_of_the_new_one(
    bitbucket: FakeBitbucket,
) -> None:
    """The time is over while the host still answers the first report.

    Nobody has heard of the last one.
    """
    bitbucket.fault(("POST", "/statuses/build"), slow(5))
    ci_step = step(bitbucket.environ())
    ci_step.sender.submit(ci_step.publisher.started(as_ended("running")))
    until(lambda: bitbucket._servers["direct"]._answering)  # the commit status

    updated, troubles = ci_step.finish(within_s=1)

    assert bitbucket.reports[REPORT]["result"] == "PENDING"
    assert updated == []
    assert troubles != []


def test_of_reports_that_wait_only_the_last_is_told(bitbucket: FakeBitbucket) -> None:
    """A host that is slow need not hear of each half minute that has passed."""
    bitbucket.fault(("PUT", "/reports/"), slow(0.5))
    ci_step = step(bitbucket.environ())
    for collected in (10, 20, 30, 40):
        ci_step.sender.submit(ci_step.publisher.progressed(on_the_way(collected)))
        until(lambda: bitbucket._servers["proxy"]._answering)
    until(lambda: len(bitbucket.seen("PUT", "/reports/")) == 2)

    ci_step.finish()

    details = [
        request.body["details"].partition(",")[0] for request in bitbucket.seen("PUT", "/reports/")
    ]
    assert details == ["running: 2 of 10 tests", "running: 2 of 40 tests", "2 passed in 1 min 23 s"]


def test_a_courier_bears_a_host_that_answers_nonsense_and_goes_on(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """A list of nothing where a list of comments should be.

    The run goes on, and the next report is told.
    """
    github.fault(("GET", "/comments"), Fault(code=200, body=[None], served=False))
    ci_step = step(github.environ(tmp_path))

    first, second = ci_step.finish(as_ended("failed")), ci_step.finish()

    assert first[0] == ["commit status"]
    assert first[1][0].startswith("GitHub: the pull request comment ")
    assert second == (["commit status", "pull request comment"], [])


def test_there_is_nothing_to_wait_for_where_there_is_nothing_to_tell(
    github: FakeGitHub, tmp_path: Path
) -> None:
    """A fork's run ends at once."""
    ci_step = step(github.environ(tmp_path, token=False))
    began = time.monotonic()

    assert ci_step.finish() == ([], [])
    assert time.monotonic() - began < 1
