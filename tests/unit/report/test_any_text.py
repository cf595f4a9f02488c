"""The words of a message are for people: what a report decides, it decides without them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_gpu_cluster.contract.events import Event, SessionFinished
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.report.model import Report
from tests.unit.report.ends import NODEIDS, all_ends, without_second
from tests.unit.report.events import report_with, session
from tests.unit.report.sessions import ending_with_text, endings, sessions, with_text
from tests.unit.report.strategies import SLOW, TEXT

# Texts that once decided a failure class, a closing or an exit code, and others that might.
WORDS = (
    "",
    "the client was lost",
    "the client's heartbeat stopped",
    "interrupted by the user",
    "deadline passed",
    "stopping after 1 failures",
    "the store has been gone for 90 s: cannot put clusters/c1/heartbeat",
    "contains 1 failed subtest",
    "ERROR: usage: pytest [options]\npytest: error: unrecognized arguments: --no-such",
    "KeyboardInterrupt",
    "infrastructure",
    "cancelled",
    "no tests were collected",
)
ANY_TEXT = st.sampled_from(WORDS) | TEXT
CLIENT_ENDINGS = [
    Ending(),
    Ending(exit_code=0),
    Ending(exit_code=1),
    Ending(exit_code=2, cancelled=True, message="interrupted by the user"),
    *(
        Ending(
            exit_code=failure_class.exit_code,
            failure_class=failure_class,
            message="the client was lost",
            remedy="try again",
        )
        for failure_class in FailureClass
    ),
]


def decisions(report: Report) -> object:
    """Return what a report has decided: of the session, and of each test."""
    results = [
        (
            result.nodeid,
            result.outcome,
            {problem.failure_class for problem in result.problems},
        )
        for result in report.results
    ]
    return report.verdict, report.exit_code, results


def assert_no_text_decides(events: Sequence[Event], ending: Ending, texts: Sequence[str]) -> None:
    """Compare the report with those of the same session with other texts in it."""
    expected = decisions(report_with(events, ending))

    for text in ("x", *texts):
        changed = report_with(with_text(events, text), ending_with_text(ending, text))
        assert decisions(changed) == expected, text


@given(sessions(ANY_TEXT), endings(ANY_TEXT), ANY_TEXT)
@example(
    without_second(
        session(*NODEIDS, end=SessionFinished(pytest_status=2, message="the client was lost"))
    ),
    Ending(),
    "",
)
@SLOW
def test_no_text_of_a_session_decides_how_it_ended(
    events: list[Event], ending: Ending, text: str
) -> None:
    """A text is reworded, masked, or a test's own.

    "The client was lost" in the message of an end once made another verdict of it.
    """
    assert_no_text_decides(events, ending, (text,))


@pytest.mark.parametrize("events", all_ends().values(), ids=all_ends())
def test_no_text_of_any_end_decides_how_it_ended(events: list[Event]) -> None:
    """Each end has a message that explains it, and the next release may explain it better."""
    for ending in CLIENT_ENDINGS:
        assert_no_text_decides(events, ending, WORDS)


def test_every_text_of_a_session_is_replaced() -> None:
    """A text that stayed as it was could decide, and nobody would see it here."""
    events = [
        *session(*NODEIDS, end=SessionFinished(pytest_status=1, shouldfail="stopping")),
        *all_ends()["first failure"],
        *all_ends()["client lost"],
    ]
    texts = ("stopping", "crash: SIGSEGV", "the client was lost")

    assert all(text in str(events) for text in texts)
    assert not [text for text in texts if text in str(with_text(events, "x"))]
