"""Events of a session by hand, and the report of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_gpu_cluster.contract.codec import Event, crash_records
from pytest_gpu_cluster.report.builder import ReportBuilder
from pytest_gpu_cluster.report.model import Ending, Report, ReportContext
from tests.replay_rig import EPOCH

CONTEXT = ReportContext(suite="gpu-cluster")


def request(*, origin: str = "/home/me/project") -> dict[str, object]:
    return {
        "session": "20260101-120000-abcd",
        "origin": origin,
        "asked_at": EPOCH,
        "provider": "local",
        "args": ["-v"],
    }


def build_report(
    events: Sequence[Event],
    *,
    exit_code: int | None = None,
    cancelled: bool = False,
    prefix: str = "",
) -> Report:
    """Return the report of events that nothing is masked in.

    Without an exit code the client is lost.
    """
    builder = ReportBuilder(request(), mask=str, prefix=prefix)
    for event in events:
        builder.add(event)
    return builder.report(CONTEXT, Ending(exit_code=exit_code, cancelled=cancelled))


def item(nodeid: str, line: int = 0) -> dict[str, object]:
    path, _, name = nodeid.partition("::")
    return {"nodeid": nodeid, "name": name, "location": [path, line, name]}


def collected(*nodeids: str) -> Event:
    items = [item(nodeid, line) for line, nodeid in enumerate(nodeids)]
    return Event("collected", {"items": items}, t=EPOCH)


def finished(index: int, nodeid: str, outcome: str = "passed") -> Event:
    """Return the end of a test that passed, or whose process died in its call."""
    location = (nodeid.partition("::")[0], index, nodeid)
    if outcome == "failed":
        records = crash_records(nodeid, location, when="call", text="crash: SIGSEGV")
    else:
        report: dict[str, object] = {
            "outcome": "passed",
            "longrepr": None,
            "sections": [],
            "duration": 0.1,
        }
        records = [
            {"kind": "report", "report": {**report, "when": when}}
            for when in ("setup", "call", "teardown")
        ]
    data = {"nodeid": nodeid, "index": index, "records": records}
    return Event("test_finished", data, t=EPOCH + index + 1)


def session(*nodeids: str, **end: Any) -> list[Event]:
    """Return the events of tests that all pass, and of an end with this data."""
    return [
        collected(*nodeids),
        *(finished(index, nodeid) for index, nodeid in enumerate(nodeids)),
        Event("session_finished", {"failure_class": None, **end}),
    ]
