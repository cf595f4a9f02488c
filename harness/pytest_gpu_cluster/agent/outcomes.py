"""The outcome of each test: committed to the journal once, counted as plain pytest counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_gpu_cluster.agent.plan import Case
from pytest_gpu_cluster.contract.events import Event, TestFinished
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.messages import Finished
from pytest_gpu_cluster.contract.records import TestRecord, count_failures, crash_records


class Outcomes:
    """The outcomes so far. `append` adds an event to the journal, in the order of commits."""

    def __init__(self, append: Callable[[Event], int]) -> None:
        self._append = append
        self.seconds: dict[int, float] = {}  # by place in the collection
        self.failures = 0  # failed reports
        self.failure_class: FailureClass | None = None  # of the first failure of a machine
        self.wants_reports = True  # a hook of the user's own may ask for every report at the end
        self.feedback: list[Sequence[TestRecord]] = []  # the records of each test, for those hooks
        self._total_s = 0.0

    @property
    def mean_s(self) -> float | None:
        """Seconds per test so far; None before the first."""
        return self._total_s / len(self.seconds) if self.seconds else None

    def commit(self, test: Case, report: Finished, *, worker: str) -> None:
        """Add the report of the test's own process, unless the test has an outcome already."""
        if test.index not in self.seconds:
            self._total_s += report.duration_s
            self._add(test, report, worker, None)
            self.count(report.records)

    def fail(
        self,
        test: Case,
        text: str,
        failure_class: FailureClass,
        *,
        when: str,
        duration_s: float = 0.0,
        worker: str = "",
    ) -> None:
        """Add an outcome that no process could report itself, unless the test has one already."""
        if test.index in self.seconds:
            return
        records = crash_records(
            test.nodeid, test.location, when=when, text=text, duration_s=duration_s
        )
        report = Finished(
            nodeid=test.nodeid, attempt=test.attempt, records=records, duration_s=duration_s
        )
        self._add(test, report, worker, failure_class)
        if failure_class.of_tests:
            self.count(records)
        else:
            self.failure_class = self.failure_class or failure_class

    def count(self, records: Sequence[TestRecord]) -> None:
        """Count the failed reports among these records."""
        self.failures += count_failures(records)

    def _add(
        self, test: Case, report: Finished, worker: str, failure_class: FailureClass | None
    ) -> None:
        self.seconds[test.index] = report.duration_s
        self._append(
            TestFinished(
                nodeid=test.nodeid,
                index=test.index,
                attempt=test.attempt,
                worker=worker,
                records=report.records,
                duration_s=report.duration_s,
                paths=report.paths,
                failure_class=failure_class,
            )
        )
        if self.wants_reports:
            self.feedback.append(report.records)
