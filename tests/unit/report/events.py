"""Events of a session by hand, and the report of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pytest_gpu_cluster.contract.events import Collected, Event, SessionFinished, TestFinished
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.contract.records import ItemRow, ReportData, TestRecord, crash_records
from pytest_gpu_cluster.contract.request import Limits, SessionRequest
from pytest_gpu_cluster.report.builder import ReportBuilder
from pytest_gpu_cluster.report.facts import SessionFacts
from pytest_gpu_cluster.report.model import Report, ReportContext
from tests.replay_rig import EPOCH

CONTEXT = ReportContext(suite="gpu-cluster")
LIMITS = Limits(max_s=3600, idle_s=0, test_timeout_s=60, infra_retries=2, default_gpus=None)


def request(*, origin: str = "/home/me/project", prefix: str = "") -> SessionRequest:
    return SessionRequest(
        session="20260101-120000-abcd",
        asked_at=EPOCH,
        provider="local",
        agent="x:y",
        root_name="project",
        origin=origin,
        cwd=".",
        args=("-v",),
        passed=(),
        limits=LIMITS,
        prefix=prefix,
    )


class EventReport:
    """A report of events, which are added as the sinks of a session add them."""

    def __init__(self, request: SessionRequest, *, mask: Callable[[str], str] = str) -> None:
        self._facts = SessionFacts()
        self._builder = ReportBuilder(request, self._facts, mask=mask)

    def add(self, *events: Event) -> None:
        for event in events:
            self._facts.add(event)
            self._builder.add(event)

    def report(self, context: ReportContext = CONTEXT, ending: Ending | None = None) -> Report:
        """Return the report with this ending; None stands for a running session."""
        return self._builder.report(context, ending)


def report_with(events: Iterable[Event], ending: Ending, *, prefix: str = "") -> Report:
    """Return the report of events that nothing is masked in."""
    builder = EventReport(request(prefix=prefix))
    builder.add(*events)
    return builder.report(CONTEXT, ending)


def build_report(
    events: Sequence[Event],
    *,
    exit_code: int | None = None,
    cancelled: bool = False,
    prefix: str = "",
) -> Report:
    """Return the report of events; without an exit code the client is lost."""
    return report_with(events, Ending(exit_code=exit_code, cancelled=cancelled), prefix=prefix)


def item(nodeid: str, line: int = 0) -> ItemRow:
    path, _, name = nodeid.partition("::")
    return {
        "nodeid": nodeid,
        "name": name,
        "parent": -1,
        "location": [path, line, name],
        "outside": None,
        "gpu": None,
        "ray": None,
    }


def collected(*nodeids: str) -> Collected:
    return collected_items([item(nodeid, line) for line, nodeid in enumerate(nodeids)])


def collected_items(items: Sequence[ItemRow]) -> Collected:
    return Collected(items=items, collectors=(), parts=(), t=EPOCH)


def report_record(report: ReportData) -> TestRecord:
    return {"kind": "report", "report": report, "status": None}


def finished(index: int, nodeid: str, outcome: str = "passed") -> TestFinished:
    """Return the end of a test that passed, or whose process died in its call."""
    location = (nodeid.partition("::")[0], index, nodeid)
    if outcome == "failed":
        records = crash_records(nodeid, location, when="call", text="crash: SIGSEGV")
    else:
        records = [
            report_record(
                {
                    "nodeid": nodeid,
                    "outcome": "passed",
                    "longrepr": None,
                    "sections": [],
                    "duration": 0.1,
                    "when": when,
                }
            )
            for when in ("setup", "call", "teardown")
        ]
    return TestFinished(nodeid=nodeid, index=index, records=records, t=EPOCH + index + 1)


def session(*nodeids: str, end: SessionFinished | None = None) -> list[Event]:
    """Return the events of tests that all pass, and of this end."""
    return [
        collected(*nodeids),
        *(finished(index, nodeid) for index, nodeid in enumerate(nodeids)),
        end or SessionFinished(),
    ]
