"""Conditions of a green run: order of events, a result for each test, equal exit codes."""

from __future__ import annotations

import pytest

from pytest_gpu_cluster.contract.events import Event, SessionFinished
from pytest_gpu_cluster.host.collection import Collection


class EventOrder:
    """Each event of a writer once and in its order."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}  # seq by writer

    def admits(self, event: Event, problems: list[str]) -> bool:
        """Return False for a repetition; add a gap to `problems`."""
        if not event.seq:
            return True
        last = self._last.get(event.writer)
        if last is not None and event.seq <= last:
            return False
        if last is not None and event.seq > last + 1:
            problems.append(f"events {last + 1} to {event.seq - 1} of {event.writer} are missing")
        self._last[event.writer] = event.seq
        return True


def cross_check(
    ended: SessionFinished | None, collection: Collection, status: int, problems: list[str]
) -> list[str]:
    """Return what speaks against `status`, which the results give here.

    `problems`: what was noticed before.

    Nothing is compared where machines were the reason of the end: then the results are known to be
    incomplete.
    """
    if ended is None:
        return [] if problems else ["the end of the remote session never arrived"]
    if ended.failure_class is not None:
        return []
    differences = []
    missing = [item.nodeid for _, item in collection.missing()] if collection.complete else []
    if missing:
        names = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        differences.append(f"{len(missing)} collected tests have no result: {names}")
    if ended.tests_status is None:
        differences.append("the remote session did not say how it ended")
    elif ended.tests_status != status:
        differences.append(
            f"the tests of the remote pytest end with exit code {ended.tests_status},"
            f" their results give {status}"
        )
    return differences


def changed_status(ended: SessionFinished, status: int) -> int:
    """Return the exit code that hooks of the user's own made of `status` on the cluster.

    Those of the selecting process decide as in plain pytest; those of a test process, which may
    have seen in its tests what only it can see, make a failure of a success.
    """
    if ended.tests_status == status and ended.pytest_status is not None:
        status = ended.pytest_status
    return ended.worker_status if status in (0, 5) and ended.worker_status else status


def tests_status(session: pytest.Session) -> int:
    """Return the exit code that pytest gives for the tests so far, whatever a hook adds to it."""
    if session.testsfailed:
        return pytest.ExitCode.TESTS_FAILED
    return pytest.ExitCode.OK if session.testscollected else pytest.ExitCode.NO_TESTS_COLLECTED
