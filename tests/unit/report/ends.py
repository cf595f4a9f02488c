"""Ends of a session with two tests, of which the second may have no result."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gpu_cluster.contract.events import Event, Interrupted, SessionFinished, TestFinished
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from tests.unit.report.events import collected, finished, session

NODEIDS = ("t.py::a", "t.py::b")
PASSED = SessionFinished(pytest_status=0)
EXITED = Interrupted(exit=True, text="")
CTRL_C = Interrupted(text="KeyboardInterrupt")
CLIENT_LOST = SessionFinished(
    pytest_status=2,
    shouldfail=False,
    shouldstop=False,
    stop=StopReason.CLIENT_LOST,
    message="the client was lost",
)
FIRST_FAILURE = SessionFinished(
    pytest_status=1, shouldfail="stopping after 1 failures", stop=StopReason.MAXFAIL
)
AGENT_CLASSES = (FailureClass.LIMIT, FailureClass.INFRASTRUCTURE)
AGENT_STATUSES = (None, 1, 2)


def agent_end(failure_class: FailureClass, pytest_status: int | None) -> SessionFinished:
    """Return the end of a session that its agent ended for this reason."""
    return SessionFinished(
        pytest_status=pytest_status,
        failure_class=failure_class,
        message="45 minutes were reached",
    )


def without_second(events: Sequence[Event]) -> list[Event]:
    """Return the events without the result of the second test."""
    return [event for event in events if not (isinstance(event, TestFinished) and event.index == 1)]


def stopped_at_first_failure() -> list[Event]:
    """Return the events of `-x`: the first test fails, and the second has no turn."""
    return [collected(*NODEIDS), finished(0, NODEIDS[0], "failed"), FIRST_FAILURE]


def all_ends() -> dict[str, list[Event]]:
    """Return the events of each end by its name."""
    whole = session(*NODEIDS, end=PASSED)
    incomplete = without_second(whole)
    cut = {f"cut after {end} events": whole[:end] for end in range(len(whole))}
    by_agent = {
        f"{failure_class}, {status}": without_second(
            session(*NODEIDS, end=agent_end(failure_class, status))
        )
        for failure_class in AGENT_CLASSES
        for status in AGENT_STATUSES
    }
    return {
        **cut,
        **by_agent,
        "all passed": whole,
        "0 without a result": incomplete,
        "pytest.exit": [*incomplete[:-1], EXITED, incomplete[-1]],
        "Ctrl-C": [*incomplete[:-1], CTRL_C, incomplete[-1]],
        "client lost": without_second(session(*NODEIDS, end=CLIENT_LOST)),
        "first failure": stopped_at_first_failure(),
    }
