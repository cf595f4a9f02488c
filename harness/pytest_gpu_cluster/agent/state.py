"""The state that the parts of an agent share: waiting tests, outcomes, the reason to stop."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gpu_cluster.agent.outcomes import Outcomes
from pytest_gpu_cluster.agent.plan import Backlog, Case, Durations
from pytest_gpu_cluster.agent.worker import Worker
from pytest_gpu_cluster.contract.event_log import EventWriter
from pytest_gpu_cluster.contract.events import Notice
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.fields import JsonValue
from pytest_gpu_cluster.contract.messages import Finished
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.records import TestRecord
from pytest_gpu_cluster.contract.request import Limits
from pytest_gpu_cluster.contract.selection import SelectionOptions


class ProcessEnds:
    """The sum of what the test processes said at their ends."""

    def __init__(self) -> None:
        self.coverage: list[str] = []  # keys in the store
        self.snapshots: list[JsonValue] = []  # syrupy's reports
        self.status = 0  # exit code of the first whose end failed after passed tests
        self.unused_gpu = 0  # tests that held a GPU by default, and did not touch it


class SessionState:
    """A session as its agent knows it. Only the agent's loop changes it."""

    def __init__(self, record: SessionRecord, journal: EventWriter, limits: Limits) -> None:
        self.record, self.journal, self.limits = record, journal, limits
        self.history: Durations = {}  # seconds of earlier sessions, once they are read
        self.outcomes = Outcomes(journal.append)
        self.options = SelectionOptions()
        self.selected = False  # collected, and the selecting process waits for the end
        self.tests: list[Case] = []  # as collected
        self.backlog = Backlog()
        self.serial = False  # one test at a time, as collected
        self.workers: list[Worker] = []
        self.crashed_files: dict[str, str] = {}  # whose import ended the process, and its text
        self.ends = ProcessEnds()
        self.stop: StopReason | None = None  # None: tests still start
        self.stop_message = ""
        self.damage: str | None = None  # what was lost: the next session needs a whole cluster

    def commit(self, worker: Worker, message: Finished) -> None:
        """Commit one outcome of one attempt, once."""
        test = worker.end_test()
        if self.stop is None or not self.stop.discards:
            self.outcomes.commit(test, message, worker=worker.name)
            self.check_maxfail()

    def fail(
        self,
        test: Case,
        text: str,
        failure_class: FailureClass,
        *,
        when: str = "setup",
        duration_s: float = 0.0,
        worker: str = "",
    ) -> None:
        """Commit an outcome that no process could report itself."""
        self.outcomes.fail(
            test, text, failure_class, when=when, duration_s=duration_s, worker=worker
        )
        self.check_maxfail()

    def fail_end(self, worker: str, status: int, text: str) -> None:
        """Let the run end with `status`, for what came after a process's tests; say why."""
        self.journal.append(Notice(name="worker", text=f"{worker}: {text}"))
        self.ends.status = self.ends.status or status

    def count_late(self, records: Sequence[TestRecord]) -> None:
        """Count errors of a teardown that ran after the outcome of its test."""
        self.outcomes.count(records)
        self.check_maxfail()

    def check_maxfail(self) -> None:
        """Stop for `-x` and `--maxfail`, as plain pytest counts."""
        limit, failures = self.options.maxfail, self.outcomes.failures
        if limit and failures >= limit:
            self.end(StopReason.MAXFAIL, f"stopping after {failures} failures")
        elif 0 < self.options.stepwise_limit <= failures:
            self.end(StopReason.CLIENT_DONE, "stepwise goes on from this test next time")

    def end(self, reason: StopReason, message: str) -> None:
        """Start no further test; running ones are asked to stop, and killed when they do not."""
        if self.stop is not None:
            return
        self.stop, self.stop_message = reason, message
        failure_class = reason.failure_class
        if failure_class is not None and failure_class.not_of_tests:
            self.outcomes.failure_class = failure_class
        tests, self.backlog = list(self.backlog), Backlog()
        for worker in list(self.workers):
            tests += [test for test in worker.queue if test is not worker.running]
            if worker.running is not None and not reason.discards:
                tests.append(worker.running)
            worker.stop()
        self.discard(tests)

    def discard(self, tests: list[Case]) -> None:
        """Drop tests after the session was stopped.

        They are errors by name when machines or limits are the reason, else they are just not run.
        """
        failure_class = self.stop.failure_class if self.stop is not None else None
        if failure_class is not None and failure_class.not_of_tests:
            for test in tests:
                self.fail(test, f"{failure_class}: {self.stop_message}", failure_class)
