"""The records of a test become the hook calls that pytest would have made for it here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import pytest

from pytest_gpu_cluster.contract.codec import from_wire
from pytest_gpu_cluster.contract.records import ReportRecord, TestRecord
from pytest_gpu_cluster.host import deserialize
from pytest_gpu_cluster.host.benchmarks import add_benchmark
from pytest_gpu_cluster.host.junit_order import JUnitOrder
from pytest_gpu_cluster.host.terminal import Terminal

# A report, what its status was answered to be, and outcome and failure that it has from then on.
Status: TypeAlias = tuple[object, Any, tuple[Any, Any] | None]


class RecordReplay:
    """A pytest plugin that calls the hooks of tests, and answers for their reports' status."""

    def __init__(self, config: pytest.Config, terminal: Terminal, junit: JUnitOrder) -> None:
        self._config, self._terminal, self._junit = config, terminal, junit
        self._started = ""  # the node id whose start is shown
        self._statuses: dict[int, Status] = {}  # of reports by their id

    def start(self, item: pytest.Item) -> None:
        """Show that a test runs, once."""
        if self._started != item.nodeid:
            self._started = item.nodeid
            self._config.hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)

    def replay(self, records: Iterable[TestRecord], *, paths: bool = True) -> None:
        """Call one test's hooks in their order, with nothing in between.

        `paths`: the records may name files of the remote tree.
        """
        hook = self._config.hook
        for record in records:
            if record["kind"] == "report":
                self._report(record, paths=paths)
            elif record["kind"] == "logstart":
                if self._started != record["nodeid"]:
                    hook.pytest_runtest_logstart(
                        nodeid=record["nodeid"], location=tuple(record["location"])
                    )
                self._started = ""
            elif record["kind"] == "logfinish":
                hook.pytest_runtest_logfinish(
                    nodeid=record["nodeid"], location=tuple(record["location"])
                )
            elif record["kind"] == "warning":
                self._terminal.warn(record)
            elif record["kind"] == "output":
                text = self._terminal.paths.text(record["text"])
                self._terminal.pass_on(text, record["via"], fresh=record.get("fresh", False))
            elif record["kind"] == "log_file":
                self._terminal.log_file(record["text"])
            elif record["kind"] == "plugin":
                add_benchmark(self._config, record)
            else:
                value = self._terminal.paths.text(record["value"])
                self._junit.record(record, value, several=self._terminal.workers > 1)
        self._started = ""

    def _report(self, record: ReportRecord, *, paths: bool) -> None:
        data = self._terminal.paths(record["report"]) if paths else record["report"]
        report = deserialize.report(self._config, data)
        changed = (report.outcome, report.longrepr) if "counted" in record else None
        self._statuses[id(report)] = (report, _status(record), changed)
        if changed is not None:
            report.outcome, report.longrepr = "passed", None
        self._config.hook.pytest_runtest_logreport(report=report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        """Answer as the conftests of the cluster did, who decide letters and words.

        A report that this turned into a failure there is turned into one here.
        """
        of, status, changed = self._statuses.get(id(report), (None, None, None))
        if of is not report:
            return None
        if changed is not None:
            report.outcome, report.longrepr = changed
        return status


def _status(record: ReportRecord) -> object:
    """Return category, letter and word of a report; None where pytest has the last word."""
    try:
        status = from_wire(record["status"])
        if status is None or len(status) == 3:
            return status
        problem = f"its status is {status!r}"
    except (TypeError, ValueError) as error:
        problem = str(error)
    raise deserialize.unreadable(record["report"]["nodeid"], problem)
