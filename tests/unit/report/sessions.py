"""Sessions of any events at all, and the same sessions with another text in each place of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from hypothesis import strategies as st

from pytest_gpu_cluster.contract.events import (
    CollectorFinished,
    Event,
    InternalError,
    Interrupted,
    LateRecords,
    NodeLost,
    PhaseFinished,
    Retry,
    SelectionRestarted,
    SessionFinished,
    TestFinished,
    UsageError,
    WorkerLost,
)
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.fields import JsonObject, JsonValue
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.contract.records import ReportData, native_longrepr
from tests.unit.report.events import collected, report_record

Texts = st.SearchStrategy[str]

STATUSES = st.none() | st.integers(0, 5)
CLASSES = st.none() | st.sampled_from(FailureClass)
STOPS = st.none() | st.sampled_from(StopReason)
# Keys of an event whose strings are texts. In an object below a text only keys of these are.
TEXT_KEYS = frozenset(
    {
        *("message", "text", "tail", "remedy", "detail", "problem"),
        *("longrepr", "lines", "$repr", "sections", "wasxfail", "msg"),
    }
)
REASON_KEYS = frozenset({"shouldfail", "shouldstop"})  # an empty text stands for no reason


def sessions(text: Texts) -> st.SearchStrategy[list[Event]]:
    """Draw the events of sessions with up to three tests, as far as a journal may have them."""
    return st.integers(0, 3).flatmap(lambda number: _session(number, text))


def endings(text: Texts) -> st.SearchStrategy[Ending]:
    """Draw endings as clients write them, and the one of a client that was lost."""
    return st.just(Ending()) | st.builds(
        Ending,
        exit_code=st.none() | st.integers(0, 15),
        failure_class=CLASSES,
        message=st.just("") | text,
        remedy=st.just("") | text,
        cancelled=st.booleans(),
    )


@st.composite
def _session(draw: st.DrawFn, number: int, text: Texts) -> list[Event]:
    nodeids = [f"t.py::test_{index}" for index in range(number)]
    before: list[Event] = draw(st.lists(_other_events(text), max_size=3))
    tests: list[Event] = draw(st.lists(_test_events(nodeids, text), max_size=5)) if nodeids else []
    after: list[Event] = draw(st.lists(_other_events(text), max_size=2))
    ends: list[Event] = draw(st.lists(_ends(text), max_size=2))
    selection = [collected(*nodeids)] if draw(st.integers(0, 4)) else []
    return [*before, *selection, *tests, *after, *ends]


def _other_events(text: Texts) -> st.SearchStrategy[Event]:
    """Draw events that belong to no test."""
    optional = st.none() | st.booleans() | text.filter(bool)
    interrupted = st.builds(
        Interrupted, text=text, exit=st.booleans(), shouldfail=optional, shouldstop=optional
    )
    collected_file = st.builds(
        CollectorFinished, report=_reports("u.py", text, when=None), kids=st.just(())
    )
    return st.one_of(
        interrupted,
        collected_file,
        st.builds(InternalError, text=text),
        st.builds(UsageError, text=text),
        st.builds(SelectionRestarted, path=st.just("u.py")),
        st.builds(NodeLost, node=st.just("n1"), message=text),
        st.builds(PhaseFinished, name=st.just("ray"), detail=text, seconds=st.just(1.0)),
        st.builds(
            WorkerLost,
            worker=st.just("w1"),
            failure_class=st.sampled_from(FailureClass),
            status=STATUSES,
            message=text,
        ),
    )


@st.composite
def _test_events(draw: st.DrawFn, nodeids: list[str], text: Texts) -> Event:
    """Draw a result of a test, a report after its end, or the news that it runs again."""
    index = draw(st.integers(0, len(nodeids) - 1))
    nodeid, kind = nodeids[index], draw(st.sampled_from(["finished", "finished", "late", "retry"]))
    if kind == "retry":
        return Retry(nodeid=nodeid, attempt=1, message=draw(text))
    phases = ("teardown",) if kind == "late" else ("setup", "call", "teardown")
    reports = [draw(_reports(nodeid, text, when=when)) for when in phases]
    records = [report_record(report) for report in reports]
    if kind == "late":
        return LateRecords(nodeid=nodeid, records=records)
    failure_class = draw(CLASSES)
    return TestFinished(nodeid=nodeid, index=index, records=records, failure_class=failure_class)


@st.composite
def _reports(draw: st.DrawFn, nodeid: str, text: Texts, *, when: str | None) -> ReportData:
    """Draw a report of one phase, or of a file where `when` is None."""
    outcome = draw(st.sampled_from(["passed", "passed", "failed", "skipped", "rerun"]))
    report: ReportData = {
        "nodeid": nodeid,
        "outcome": outcome,
        "longrepr": None if outcome == "passed" else draw(_longreprs(text)),
        "sections": [["Captured stdout call", draw(text)]],
    }
    if when is not None:
        report["when"] = when
    if when == "call" and draw(st.booleans()):
        report["wasxfail"] = draw(text)
    if when == "call" and draw(st.booleans()):
        report["_subtest.context"] = {"msg": draw(text), "kwargs": {}}
    return report


def _longreprs(text: Texts) -> st.SearchStrategy[JsonValue]:
    """Draw each form in which a failure or a skip travels."""
    return st.one_of(
        text,
        text.map(lambda value: native_longrepr(value, ("t.py", 3, "t"))),
        text.map(lambda value: {"$t": ["t.py", 3, f"Skipped: {value}"]}),
        text.map(lambda value: {"$repr": [value, value]}),
    )


def _ends(text: Texts) -> st.SearchStrategy[Event]:
    optional = st.none() | st.booleans() | text.filter(bool)
    return st.builds(
        SessionFinished,
        pytest_status=STATUSES,
        shouldfail=optional,
        shouldstop=optional,
        failure_class=CLASSES,
        stop=STOPS,
        message=text,
        tail=text,
        writer=st.sampled_from(["agent", "keeper", "guard"]),
    )


# --- another text ---------------------------------------------------------------------------------


def with_text(events: Iterable[Event], text: str) -> list[Event]:
    """Return the events with `text` in the place of each of their texts."""
    return [_event_with_text(event, text) for event in events]


def ending_with_text(ending: Ending, text: str) -> Ending:
    return dataclasses.replace(ending, message=text, remedy=text)


def _event_with_text(event: Event, text: str) -> Event:
    names = {field.name for field in dataclasses.fields(event)}
    # A text that has its default, which is "", is absent from the JSON object.
    absent: JsonObject = {key: text for key in ("message", "tail", "problem") if key in names}
    body: JsonObject = {**absent, **event.to_json()}
    changed = type(event).from_json(_value_with_text(body, text))
    return dataclasses.replace(changed, seq=event.seq, writer=event.writer, t=event.t)


def _value_with_text(value: JsonValue, text: str, *, is_text: bool = False) -> JsonValue:
    if isinstance(value, str):
        return text if is_text else value
    if isinstance(value, list):
        return [_value_with_text(item, text, is_text=is_text) for item in value]
    if isinstance(value, dict):
        return {key: _item_with_text(key, item, text, is_text) for key, item in value.items()}
    return value


def _item_with_text(key: str, value: JsonValue, text: str, is_text: bool) -> JsonValue:
    if key in REASON_KEYS:
        return _value_with_text(value, text or "x", is_text=bool(value))
    is_text = key in TEXT_KEYS or (is_text and key == "$t")  # of a tuple's values
    return _value_with_text(value, text, is_text=is_text)
