"""Failure classes, reasons to stop, and what follows from each: the words that code decides by.

The text beside a failure is for people; no code reads it.
"""

from __future__ import annotations

from enum import StrEnum


class FailureClass(StrEnum):
    """The name of a failure in events, reports, JUnit and exit codes."""

    TEST = "test"  # an assertion or an exception of the test
    CRASH = "crash"  # the process of the test died
    TIMEOUT = "timeout"  # the test outlived its own limit
    REQUEST = "request"  # what was asked cannot be done; nothing was spent
    INFRASTRUCTURE = "infrastructure"  # Ray, a node, the agent or the store failed
    ENVIRONMENT = "environment"  # the environment of the nodes could not be built
    CAPACITY = "capacity"  # no machine could be had
    LIMIT = "limit"  # the session's deadline was reached
    TEARDOWN = "teardown"  # results stand, but something may still be running

    @property
    def of_tests(self) -> bool:
        """True for the failures that count as a failed test, as plain pytest counts."""
        return self in _OF_TESTS

    @property
    def not_of_tests(self) -> bool:
        """True for the classes with an exit code from 10 to 19."""
        return self in NOT_TESTS

    @property
    def exit_code(self) -> int:
        """The exit code of a session that ended with this failure."""
        return _EXIT_CODES[self]


_OF_TESTS = (FailureClass.TEST, FailureClass.CRASH, FailureClass.TIMEOUT)
NOT_TESTS = (
    FailureClass.INFRASTRUCTURE,
    FailureClass.ENVIRONMENT,
    FailureClass.CAPACITY,
    FailureClass.LIMIT,
    FailureClass.TEARDOWN,
)
# pytest's own exit codes 0 to 5 keep their meaning; 10 to 19 always mean "not your tests".
_EXIT_CODES = {
    **dict.fromkeys(_OF_TESTS, 1),
    FailureClass.REQUEST: 4,
    FailureClass.INFRASTRUCTURE: 10,
    FailureClass.ENVIRONMENT: 11,
    FailureClass.CAPACITY: 12,
    FailureClass.LIMIT: 13,
    FailureClass.TEARDOWN: 14,
}


class StopReason(StrEnum):
    """Why an agent starts no further test."""

    NOTHING_TO_RUN = "nothing_to_run"  # the selection ended the session by itself
    MAXFAIL = "maxfail"  # -x or --maxfail
    INTERRUPTED = "interrupted"  # a test or a hook ended the session
    INTERNAL_ERROR = "internal_error"  # pytest or a plugin failed
    NOT_STARTED = "not_started"  # a test process ended before its first test
    CRASH = "crash"  # the selecting process died
    LIMIT = "limit"  # the session's deadline
    INFRASTRUCTURE = "infrastructure"
    CAPACITY = "capacity"  # Ray did not give devices back that a test had been given
    CLIENT_DONE = "client_done"  # the client needs no more results
    CANCELLED = "cancelled"  # the user's Ctrl-C
    CLIENT_LOST = "client_lost"  # nobody is left to want a result

    @property
    def failure_class(self) -> FailureClass | None:
        """The class that goes with this reason.

        Only one that is `not_of_tests` becomes the class of the session, and makes errors of the
        tests that have no turn.
        """
        return _STOP_CLASSES.get(self)

    @property
    def discards(self) -> bool:
        """True where outcomes that arrive after the stop are dropped."""
        return self.failure_class is None


_STOP_CLASSES = {
    StopReason.CRASH: FailureClass.CRASH,
    StopReason.LIMIT: FailureClass.LIMIT,
    StopReason.INFRASTRUCTURE: FailureClass.INFRASTRUCTURE,
    StopReason.CAPACITY: FailureClass.CAPACITY,
}


class KeeperStop(StrEnum):
    """Why a keeper ends a session whose agent has not ended it."""

    AGENT_LOST = "agent_lost"  # the agent's process ended without a last word
    NOT_BEGUN = "not_begun"  # the session could not be started on this cluster
    DEADLINE = "deadline"  # the agent did not stop when the session's deadline passed
    CLIENT_SILENT = "client_silent"  # the client's heartbeat stopped
    CLUSTER_CLOSED = "cluster_closed"  # the cluster had to close under the session

    @property
    def failure_class(self) -> FailureClass:
        return FailureClass.LIMIT if self is KeeperStop.DEADLINE else FailureClass.INFRASTRUCTURE

    @property
    def closes_record(self) -> bool:
        """True where the keeper closes the record, because the client is gone."""
        return self is KeeperStop.CLIENT_SILENT


class Closer(StrEnum):
    """Who made a session's record final."""

    CLIENT = "client"  # after teardown
    KEEPER = "keeper"  # the client's heartbeat had stopped
    GUARD = "guard"  # client and keeper were lost
    REPORT = "report"  # `gpu-cluster report`, after the client was lost
    SWEEP = "sweep"  # `gpu-cluster sweep`
