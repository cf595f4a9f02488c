"""One test as a list of records: the calls of pytest's hooks that the client makes again.

A record is a dict, for a test has five of them and thousands of tests are many: the types here
document its keys. What pytest and its plugins put into a report is anything at all, made plain by
`codec.to_wire`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NotRequired, TypeAlias, TypedDict

from pytest_gpu_cluster.contract.codec import to_wire
from pytest_gpu_cluster.contract.fields import JsonObject, JsonValue

Phase: TypeAlias = Literal["setup", "call", "teardown"]
Location: TypeAlias = Sequence[
    str | int | None
]  # file, 0-based line or None, name: as pytest has it

ReportData = TypedDict(
    "ReportData",
    {
        "$report_type": NotRequired[str],  # which plugin rebuilds it
        "nodeid": str,
        "outcome": str,  # passed, failed, skipped, rerun
        "when": NotRequired[str],  # setup, call, teardown; absent for a collect report
        "location": NotRequired[JsonValue],
        # A failure; {"$repr": [plain, coloured]} where pytest has no form for it
        "longrepr": JsonValue,
        "sections": NotRequired[JsonValue],  # pairs of a title and captured text
        "duration": NotRequired[float],  # seconds
        "start": NotRequired[float],
        "stop": NotRequired[float],
        "keywords": NotRequired[JsonValue],
        "user_properties": NotRequired[JsonValue],
        "wasxfail": NotRequired[str],
        "result": NotRequired[JsonValue],
        "_subtest.context": NotRequired[JsonValue],
    },
)
"""What pytest's own serialiser makes of a report, and what plugins add to it."""


class NodeRecord(TypedDict):
    """A test begins (logstart) or ends (logfinish)."""

    kind: Literal["logstart", "logfinish"]
    nodeid: str
    location: Location


class ReportRecord(TypedDict):
    """One phase of a test has a report."""

    kind: Literal["report"]
    report: ReportData
    # Category, letter and word, as the conftests of the cluster answered; None: nobody did
    status: JsonValue
    # The outcome that pytest counted, where asking for the status has changed it since
    counted: NotRequired[str]


class WarningRecord(TypedDict):
    """A warning: its category by name and its source line.

    Nothing has to be imported to show it.
    """

    kind: Literal["warning"]
    category: str
    module: str
    text: str
    filename: str
    lineno: int
    line: str
    source: bool  # tracemalloc knew where the object was made
    when: str  # config, collect, runtest
    nodeid: str
    location: JsonValue


class OutputRecord(TypedDict):
    """A text that a plugin or a test wrote past pytest's capture."""

    kind: Literal["output"]
    text: str
    via: str  # tw: the terminal reporter's writer; out, err: the standard streams
    fd: int
    fresh: NotRequired[bool]  # the remote reporter has ended the line that it was in


class LogFileRecord(TypedDict):
    """The user's --log-file got this."""

    kind: Literal["log_file"]
    text: str


class XmlRecord(TypedDict):
    """record_xml_attribute, record_property or record_testsuite_property was called."""

    kind: Literal["xml_attribute", "xml_property", "xml_global"]
    nodeid: str
    name: str
    value: str


class PluginRecord(TypedDict):
    """What a plugin keeps of a test until the end of its session, which is on the client."""

    kind: Literal["plugin"]
    plugin: str
    data: JsonValue


TestRecord: TypeAlias = (
    NodeRecord
    | ReportRecord
    | WarningRecord
    | OutputRecord
    | LogFileRecord
    | XmlRecord
    | PluginRecord
)


class CollectorRow(TypedDict):
    """A collector of the collection tree."""

    nodeid: str
    name: str
    parent: int  # the row of its parent among the collectors; -1: the session
    repr: NotRequired[str]  # with --collect-only
    doc: NotRequired[str | None]  # with --collect-only -v


class ItemRow(CollectorRow):
    """A collected test, and what its marks ask for."""

    location: Location
    outside: (
        Sequence[str] | None
    )  # of a test outside the tree: the argument that led there, and its file
    gpu: JsonObject | None  # arguments of the mark by name; None without the mark
    ray: JsonObject | None
    # Tests of one scope run in one process, in the order of the collection; absent: it is alone
    scope: NotRequired[str]
    bound: NotRequired[bool]  # the tests say so themselves: history never takes the scope apart


class PluginLines(TypedDict):
    """What a plugin answered to a hook that reports lines."""

    plugin: str
    lines: Sequence[str]


class PluginText(TypedDict):
    """What a plugin wrote into the summary."""

    plugin: str
    text: str
    fresh: bool  # the reporter has ended the line that it was in


def crash_records(
    nodeid: str,
    location: Location,
    *,
    when: str,
    text: str,
    duration_s: float = 0.0,
    sections: Iterable[Sequence[str]] = (),
    earlier: Sequence[TestRecord] = (),
) -> list[TestRecord]:
    """Return the records of a test that could not report itself.

    It FAILED when it died in `call`, and is an ERROR in `setup` or `teardown`. `text` is the whole
    failure, its first line the message of the summary. `earlier` holds what the test had recorded.
    The phases before `when` count as passed, and a teardown always follows, so that JUnit closes
    the test case.
    """
    records = [*earlier]
    reported = {record["report"].get("when") for record in records if record["kind"] == "report"}
    if not records:
        records.append({"kind": "logstart", "nodeid": nodeid, "location": list(location)})

    def add(phase: str, outcome: str, longrepr: JsonValue = None, seconds: float = 0.0) -> None:
        if phase in reported and outcome == "passed":
            return
        report: ReportData = {
            "$report_type": "TestReport",
            "nodeid": nodeid,
            "location": to_wire(tuple(location)),
            "keywords": {},
            "outcome": outcome,
            "longrepr": longrepr,
            "when": phase,
            "sections": to_wire([tuple(section) for section in sections] if longrepr else []),
            "duration": seconds,
            "start": 0.0,
            "stop": 0.0,
            "user_properties": [],
        }
        records.append({"kind": "report", "report": report, "status": None})

    for phase in ("setup", "call", "teardown"):
        if phase == when:
            add(phase, "failed", native_longrepr(text, location), duration_s)
        elif phase == "teardown" or (phase == "setup" or when == "teardown"):
            add(phase, "passed")
    records.append({"kind": "logfinish", "nodeid": nodeid, "location": list(location)})
    return records


def count_failures(records: Iterable[TestRecord]) -> int:
    """Return the number of failed reports as pytest counts them for `--maxfail`."""
    reports = (record for record in records if record["kind"] == "report")
    return sum(each.get("counted", each["report"]["outcome"]) == "failed" for each in reports)


def native_longrepr(text: str, location: Location) -> JsonObject:
    """Return `text` as pytest serialises a native traceback: summaries find its first line."""
    entry: JsonObject = {
        "type": "ReprEntryNative",
        "data": {"lines": [f"{line}\n" for line in text.splitlines()]},
    }
    traceback: JsonObject = {"reprentries": [entry], "extraline": None, "style": "native"}
    file, line = location[0], location[1]
    crash: JsonObject = {
        "path": str(file),
        "lineno": (line if isinstance(line, int) else 0) + 1,
        "message": text.partition("\n")[0],
    }
    return {"reprcrash": crash, "reprtraceback": traceback, "sections": [], "chain": None}
