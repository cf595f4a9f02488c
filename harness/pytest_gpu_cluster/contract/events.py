"""Events of a session: one class for each kind, every key documented.

The agent appends them to the session's journal; a keeper or guard that has lost it appends
`session_finished`. The client reads them, and makes `request` and `phase` for its own sinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import ClassVar

from pytest_gpu_cluster.contract.codec import VERSION
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.fields import (
    FieldError,
    JsonObject,
    JsonValue,
    Noun,
    alias,
    outside,
    shown,
)
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.record_check import check_records, is_time
from pytest_gpu_cluster.contract.records import (
    CollectorRow,
    ItemRow,
    PluginLines,
    PluginText,
    ReportData,
    TestRecord,
    WarningRecord,
)
from pytest_gpu_cluster.contract.request import SessionRequest
from pytest_gpu_cluster.contract.selection import Raised, SelectionOptions, Stepwise


class Message(Noun):
    """Base of what is told by one JSON object that names its kind."""

    __test__: ClassVar[bool] = False  # pytest: not a test class, whatever its name begins with
    sparse: ClassVar[bool] = True
    kind: ClassVar[str]

    def __init_subclass__(cls, *, kind: str = "") -> None:
        if kind:
            cls.kind = kind

    def to_message(self) -> JsonObject:
        """Return the JSON object with its kind."""
        return {"kind": self.kind, **self.to_json()}


@dataclass(frozen=True, kw_only=True)
class Event(Message):
    """One event. `seq` counts without a gap per writer; 0 for an event that no journal has seen."""

    seq: int = field(default=0, metadata=outside())
    writer: str = field(default="", metadata=outside())
    t: float = field(default=0.0, metadata=outside())  # unix seconds on the writer's clock

    @classmethod
    def of(cls, entry: Mapping[str, object]) -> Event:
        """Return the event of a journal's entry.

        Raises FieldError for one that this version cannot read.
        """
        body = dict(entry)
        version, kind = body.pop("v", VERSION), body.pop("kind", None)
        seq, writer, t = body.pop("seq", 0), body.pop("writer", ""), body.pop("t", 0.0)
        if version != VERSION or not isinstance(kind, str) or kind not in EVENTS:
            raise FieldError(f"kind {shown(kind)}, version {shown(version)}")
        event = EVENTS[kind].from_json(body)
        check_records(event)
        if not (isinstance(seq, int) and isinstance(writer, str) and is_time(t)):
            raise FieldError(f"event {shown(seq)} of {shown(writer)} at {shown(t)}")
        for name, value in (("seq", seq), ("writer", writer), ("t", t)):
            object.__setattr__(event, name, value)  # it is not shared yet
        return event


# --- the session and its machines -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Requested(Event, kind="request"):
    """The session begins. It comes once more when tree and shape are known.

    The client makes it for its sinks; it is in no journal.
    """

    request: SessionRequest


@dataclass(frozen=True, kw_only=True)
class PhaseFinished(Event, kind="phase"):
    """A phase before the first test is over."""

    name: str  # environment, tree, cluster, ray
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Notice(Event, kind="notice"):
    """A sentence for the user about how this session runs tests."""

    name: str  # order, distribute, xdist, outputs, gpu
    text: str


@dataclass(frozen=True, kw_only=True)
class NodeReady(Event, kind="node"):
    """A node of the cluster is ready for tests."""

    node: str  # head, or the beginning of Ray's node id
    host: str
    gpus: tuple[Gpu, ...]
    driver: str | None
    simulated: bool  # its GPUs are not real
    cluster: str = ""  # the cluster's id; of the head alone


@dataclass(frozen=True, kw_only=True)
class NodeLost(Event, kind="node_lost"):
    """A node has left the cluster."""

    node: str  # Ray's node id
    message: str


@dataclass(frozen=True, kw_only=True)
class WorkerLost(Event, kind="worker_lost"):
    """A test process ended unasked."""

    worker: str
    failure_class: FailureClass  # crash, or infrastructure when its machine is the reason
    status: int | None  # exit code, negative: the signal; None: nobody was there to see it
    message: str


@dataclass(frozen=True, kw_only=True)
class Retry(Event, kind="retry"):
    """A test runs again, because its machine was lost."""

    nodeid: str
    attempt: int  # of the run to come, from 0
    message: str


@dataclass(frozen=True, kw_only=True)
class SessionFinished(Event, kind="session_finished"):
    """The last event of a writer: how the remote session ended."""

    # Of the remote pytest; None: it has none
    pytest_status: int | None = field(default=None, metadata=alias("exitstatus"))
    tests_status: int | None = None  # of its tests alone, before hooks of its end changed it
    worker_status: int = 0  # that a hook made of a process's passed tests; 0: none did
    shouldfail: str | bool | None = None  # pytest's own reasons to end
    shouldstop: str | bool | None = None
    failure_class: FailureClass | None = None  # None: the tests decide
    stop: StopReason | None = None  # why the agent started no further test; None: all have run
    message: str = ""
    tail: str = ""  # the end of a lost process's output
    coverage: tuple[str, ...] = ()  # keys in the store of the data that coverage.py measured
    fit: bool = False  # the cluster may serve another session


# --- the selection --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hello(Event, kind="hello"):
    """The selecting process has started."""

    root: str  # the tree's place on the node
    origin: str  # and on the client
    workers: int  # how many tests of the default demand run at once
    pytest: str  # version
    python: str  # version
    executable: str


@dataclass(frozen=True, kw_only=True)
class Header(Event, kind="header"):
    """Lines of plugins for pytest's header."""

    parts: Sequence[PluginLines]


@dataclass(frozen=True, kw_only=True)
class WarningRaised(Event, kind="warning"):
    """A warning outside of any test."""

    warning: WarningRecord
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class CollectorFinished(Event, kind="collectreport"):
    """A file, a class or a directory was collected, or could not be."""

    report: ReportData
    kids: tuple[tuple[bool, str, str], ...]  # of each child: whether it is a test, node id, name


@dataclass(frozen=True, kw_only=True)
class Deselected(Event, kind="deselected"):
    """Tests that the selection has left out."""

    nodeids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SelectionRestarted(Event, kind="selection_restarted"):
    """The selecting process died in a file and begins again; what it had said does not count."""

    path: str  # the file, whose error its death becomes


@dataclass(frozen=True, kw_only=True)
class Collected(Event, kind="collected"):
    """The selection is final."""

    items: Sequence[ItemRow]
    collectors: Sequence[CollectorRow]  # parents precede their children
    parts: Sequence[PluginLines]  # what plugins report about the collection
    raised: Raised | None = None
    run: bool = True  # False: no test will run
    problem: str = ""  # why, where pytest says so
    options: SelectionOptions = field(default_factory=SelectionOptions)
    stepwise: Stepwise | None = None


# --- tests ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TestStarted(Event, kind="test_started"):
    """A test runs that did not end in the same moment."""

    nodeid: str
    worker: str
    attempt: int  # from 0; a higher one after a machine was lost


@dataclass(frozen=True, kw_only=True)
class TestFinished(Event, kind="test_finished"):
    """The one committed outcome of a test."""

    nodeid: str
    records: Sequence[TestRecord]
    index: int | None = None  # place in the collection
    attempt: int = 0
    worker: str = ""
    duration_s: float = 0.0
    paths: bool = True  # the records may name files of the remote tree
    failure_class: FailureClass | None = None  # of an outcome that its process could not report


@dataclass(frozen=True, kw_only=True)
class LateRecords(Event, kind="late"):
    """A teardown that ran after the outcome of its test was committed had an error, or output."""

    nodeid: str
    records: Sequence[TestRecord]
    attempt: int = 0
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Output(Event, kind="output"):
    """A text that was written past pytest's capture, outside of any record."""

    text: str
    via: str  # tw: the terminal reporter's writer; out, err: the standard streams
    fd: int = 1
    fresh: bool = False  # the remote reporter has ended the line that it was in
    worker: str = ""


# --- ends -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InternalError(Event, kind="internal_error"):
    """pytest itself, a plugin, or the agent failed."""

    text: str  # the traceback
    worker: str = ""
    nodeid: str = ""  # of the test that ran; "": none
    attempt: int = 0
    records: Sequence[TestRecord] = ()  # what that test had recorded


@dataclass(frozen=True, kw_only=True)
class Interrupted(Event, kind="interrupted"):
    """Ctrl-C, `pytest.exit`, or a hook that set shouldfail or shouldstop."""

    text: str
    exit: bool = False  # it was pytest.exit
    returncode: int | None = None  # given to pytest.exit
    longrepr: JsonValue = None  # the place, as a report would carry it
    shouldfail: str | bool | None = None
    shouldstop: str | bool | None = None
    worker: str = ""
    nodeid: str = ""
    attempt: int = 0
    records: Sequence[TestRecord] = ()


@dataclass(frozen=True, kw_only=True)
class UsageError(Event, kind="usage_error"):
    """pytest refused its arguments."""

    text: str
    worker: str = ""


@dataclass(frozen=True, kw_only=True)
class Finishing(Event, kind="finishing"):
    """The remote session has begun to end: output that follows belongs below the results."""


@dataclass(frozen=True, kw_only=True)
class Summary(Event, kind="summary"):
    """What the user's conftests write at the end; of a worker, plugins by their modules."""

    parts: Sequence[PluginText]
    worker: str = ""


EVENTS: dict[str, type[Event]] = {
    each.kind: each
    for each in (
        *(Requested, PhaseFinished, Notice, NodeReady, NodeLost, WorkerLost, Retry),
        *(SessionFinished, Hello, Header, WarningRaised, CollectorFinished, Deselected),
        *(SelectionRestarted, Collected, TestStarted, TestFinished, LateRecords, Output),
        *(InternalError, Interrupted, UsageError, Finishing, Summary),
    )
}
