"""What an agent and its test processes tell each other: lines of JSON over one socket.

A test process tells events (see `events`) and the messages below; the agent answers with orders.
The lease between them adds `raw` and `exit`, which come from no Python code of ours in the process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeAlias

from pytest_gpu_cluster.contract.codec import encode_line
from pytest_gpu_cluster.contract.events import EVENTS, Message
from pytest_gpu_cluster.contract.failures import StopReason
from pytest_gpu_cluster.contract.fields import FieldError, JsonValue, Noun, shown
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.records import TestRecord

# --- from a test process --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Collecting(Message, kind="collecting"):
    """The selection is about to import a file."""

    path: str


@dataclass(frozen=True, kw_only=True)
class CaptureFiles(Message, kind="capture_fds"):
    """The descriptors of pytest's capture files travel beside this message."""

    n: int


@dataclass(frozen=True, kw_only=True)
class Ready(Message, kind="ready"):
    """The process waits for its first order."""


@dataclass(frozen=True, kw_only=True)
class Started(Message, kind="started"):
    """The test at the head of the queue runs."""

    nodeid: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class PhaseStarted(Message, kind="test_phase"):
    """The running test has come to its call or its teardown."""

    when: str


@dataclass(frozen=True, kw_only=True)
class Finished(Message, kind="finished"):
    """The test at the head of the queue has ended."""

    nodeid: str
    attempt: int
    records: Sequence[TestRecord]
    duration_s: float
    paths: bool = (
        True  # the records may name files of the tree; the agent says so where they do not
    )


@dataclass(frozen=True, kw_only=True)
class Done(Message, kind="done"):
    """pytest has ended; nothing follows but the end of the process."""

    exitstatus: int | None
    tests_status: int | None = None  # before hooks of the session's end changed it
    shouldfail: str | bool | None = None
    shouldstop: str | bool | None = None
    snapshots: JsonValue = None  # syrupy's report of the process
    coverage: str = ""  # the file that coverage.py has written on the node
    unused_gpu: int = 0  # tests without a mark that certainly did not touch the GPU they held


@dataclass(frozen=True, kw_only=True)
class Raw(Message, kind="raw"):
    """The process wrote to its own stdout or stderr; from its lease."""

    fd: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Exit(Message, kind="exit"):
    """The process is gone, with all that it started.

    It comes from the lease, as the last message.
    """

    status: int | None  # exit code, negative: the signal; None: its node is going down
    ordered: bool = False  # it was ended by order
    out: str = ""  # the last output
    err: str = ""
    captured_out: str = ""  # and what pytest's capture still held
    captured_err: str = ""
    why: str = ""  # what is known of a lost node


# --- from the agent to its keeper ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AgentFinished(Message, kind="finished"):
    """The agent has ended its session.

    The keeper reads this from the lease, as `raw` and `exit`.
    """

    clean: bool  # the cluster may serve another session
    why: str = ""  # it may not


# --- from a keeper to its agent -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EndSession(Message, kind="end"):
    """The client, or who closes its record, wants no further test."""

    reason: StopReason


# --- to a test process ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TestOrder(Noun):
    """One test to run."""

    __test__ = False

    nodeid: str
    occurrence: int = 0  # which of several tests of that node id
    outside: tuple[
        str, ...
    ] = ()  # of a test outside the tree: the argument that led to it, and its file
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class RunTests(Message, kind="run"):
    """Run these tests after those that wait already."""

    tests: tuple[TestOrder, ...]
    last: bool = False  # nothing will follow


@dataclass(frozen=True, kw_only=True)
class StopRunning(Message, kind="stop"):
    """Start no further test."""


@dataclass(frozen=True, kw_only=True)
class FinishSession(Message, kind="finish"):
    """End the session when the queue is empty.

    The selecting process is told how the tests have ended.
    """

    shouldfail: str = ""
    shouldstop: str = ""
    testsfailed: int = 0
    snapshots: Sequence[JsonValue] = ()  # syrupy's reports of the other processes


@dataclass(frozen=True, kw_only=True)
class ShowReports(Message, kind="reports"):
    """Let the user's hooks see tests that ran elsewhere; for the selecting process."""

    tests: Sequence[Sequence[TestRecord]]


MESSAGES: dict[str, type[Message]] = {
    **EVENTS,
    **{
        each.kind: each
        for each in (
            *(Collecting, CaptureFiles, Ready, Started, PhaseStarted, Finished, Done, Raw, Exit),
            *(EndSession, RunTests, StopRunning, FinishSession, ShowReports),
        )
    },
}
Order: TypeAlias = RunTests | StopRunning | FinishSession | ShowReports


def encode(message: Message) -> bytes:
    """Return a message as one line of ASCII JSON."""
    return encode_line(message.to_message())


def decode(line: bytes | str) -> Message:
    """Return the message of one line. Raises FieldError for one that this code does not know."""
    body = json.loads(line)
    kind = body.pop("kind", None) if isinstance(body, dict) else None
    if kind not in MESSAGES:
        raise FieldError(f"a message of unknown kind: {shown(kind)}")
    return MESSAGES[kind].from_json(body)
