"""All test processes of a session: opened, listened to, and their deaths turned into outcomes."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from pytest_gpu_cluster.agent.crash import crash_text, was_killed, with_last_output
from pytest_gpu_cluster.agent.plan import Case, Demand
from pytest_gpu_cluster.agent.processes import Launcher
from pytest_gpu_cluster.agent.ray_cluster import Cluster
from pytest_gpu_cluster.agent.selection import raw_output
from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.agent.worker import Death, Worker
from pytest_gpu_cluster.contract.events import (
    InternalError,
    Interrupted,
    LateRecords,
    Message,
    Notice,
    Output,
    Retry,
    Summary,
    TestStarted,
    UsageError,
    WarningRaised,
    WorkerLost,
)
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.messages import (
    Done,
    Exit,
    Finished,
    PhaseStarted,
    Raw,
    Ready,
    Started,
)
from pytest_gpu_cluster.contract.specs import AgentSpec


class Workers:
    """Opens test processes and acts on what they send."""

    def __init__(
        self, spec: AgentSpec, state: SessionState, cluster: Cluster, launcher: Launcher
    ) -> None:
        self._state, self._cluster, self._launcher = state, cluster, launcher
        self._scratch, self._limits = spec.scratch, spec.request.limits
        self._passed = spec.passed.to_json()
        self._opened = 0
        self._not_started = Counter[str]()  # by node: processes that a machine may have failed

    def open(self, demand: Demand, devices: Mapping[str, float]) -> None:
        """Claim devices and start a process there; it sends a message when it is ready."""
        self._cluster.claim(devices)
        worker = Worker(f"gw{self._opened}", demand, devices)
        self._opened += 1
        self._state.workers.append(worker)
        self._launcher.start_worker(worker)

    def on_messages(self, worker: Worker, messages: list[Message]) -> None:
        """Act on messages of a process. No start is published of a test that has ended already."""
        for message in messages:
            self._on_message(worker, message)
        self._publish_start(worker)

    def _on_message(self, worker: Worker, message: Message) -> None:
        match message:
            case PhaseStarted():
                worker.phase = message.when
            case Started():
                worker.start_test()
            case Finished():
                self._state.commit(worker, message)
            case Ready():
                worker.become_ready()
            case Raw():
                if self._state.options.capture == "no":
                    self._publish(worker, raw_output(message, worker.name))
            case Output():
                self._publish(worker, replace(message, worker=worker.name))
            case LateRecords() | WarningRaised():
                self._on_late(worker, message)
            case Summary():
                self._state.journal.append(replace(message, worker=worker.name))
            case InternalError() | Interrupted():
                self._on_end_of_session(worker, message)
            case UsageError():
                worker.refusal = message.text
            case Done():
                worker.result = message
                self._check_end(worker, message)
                self._state.ends.unused_gpu += message.unused_gpu if worker.demand.gpus else 0
            case Exit():
                self._on_exit(worker, message)

    def _check_end(self, worker: Worker, message: Done) -> None:
        """Keep what a hook at the end of a process made of passed tests: plain pytest fails too."""
        if message.snapshots is not None:
            self._state.ends.snapshots.append(message.snapshots)
        status = message.exitstatus
        if message.tests_status == 0 and status:
            text = (
                f"exit code {status} of a hook at the end of its session, though its tests passed"
            )
            self._state.fail_end(worker.name, status, text)

    def _publish_start(self, worker: Worker) -> None:
        if (test := worker.unpublished) is not None:
            worker.unpublished = None
            self._state.journal.append(
                TestStarted(nodeid=test.nodeid, worker=worker.name, attempt=test.attempt)
            )

    def _publish(self, worker: Worker, output: Output) -> None:
        """Append an output of a running test, after the test's start."""
        self._publish_start(worker)
        self._state.journal.append(output)

    def _on_late(self, worker: Worker, message: LateRecords | WarningRaised) -> None:
        if isinstance(message, LateRecords):
            self._state.count_late(message.records)
        self._state.journal.append(replace(message, worker=worker.name))

    def _on_end_of_session(self, worker: Worker, message: InternalError | Interrupted) -> None:
        """Stop the session: pytest.exit or Ctrl-C in a test, or an internal error."""
        interrupted = isinstance(message, Interrupted)
        # After the user's Ctrl-C it says where the running test was.
        if self._state.stop is None or (interrupted and self._state.stop is StopReason.CANCELLED):
            self._state.journal.append(replace(message, worker=worker.name))
        worker.drop_tests()
        reason = StopReason.INTERRUPTED if interrupted else StopReason.INTERNAL_ERROR
        self._state.end(reason, message.text)

    # -- the end of a process ----------------------------------------------------------------------

    def _on_exit(self, worker: Worker, ending: Exit) -> None:
        """Turn the end of a process into what it means for its tests."""
        state = self._state
        state.workers.remove(worker)
        self._upload_artifacts(worker)
        self._release(worker, ending)
        victim = worker.victim(ending)
        others = [test for test in worker.queue if test is not victim]
        match worker.death(ending):
            case Death.NOT_STARTED:
                self._on_start_failure(worker, ending)
            case Death.TIMEOUT if victim is not None:
                self._fail_timeout(worker, victim, ending)
            case Death.CRASH if victim is not None:
                self._fail_crash(worker, victim, ending)
            case Death.MACHINE_LOST:
                lost_tests = [*([victim] if victim is not None else []), *others]
                self._retry(worker, lost_tests, _loss(worker, ending))
                others = []
            case Death.ENDED if worker.has_broken_end(ending):
                text = with_last_output(crash_text(ending, "after its tests"), ending)
                state.fail_end(worker.name, 1, text)
        worker.drop_tests()
        if state.stop is None:
            state.backlog.put_back(others)

    def _release(self, worker: Worker, ending: Exit) -> None:
        """Give the devices back. Next to a driving test no reservation stays idle."""
        demands = [*self._state.backlog.demands(), *(each.demand for each in self._state.workers)]
        reusable = not worker.machine_lost(ending) and not any(each.drives for each in demands)
        self._cluster.release(worker.reservation, worker.devices, reusable=reusable)

    def _upload_artifacts(self, worker: Worker) -> None:
        """Store the files that the tests left in `artifacts`, and the coverage data."""
        record = self._state.record
        source = self._scratch / worker.name / "artifacts"
        sources = {record.artifacts_prefix(): str(source)}
        if worker.result is not None and worker.result.coverage:
            key = record.coverage_key(worker.name)
            sources[key] = worker.result.coverage
            self._state.ends.coverage.append(key)
        # A lost node takes its files with it; results do not depend on them.
        with contextlib.suppress(Exception):
            if worker.reservation is not None:
                request = {"op": "upload", "sources": sources, "passed": self._passed}
                answer = self._cluster.reservations.ask(worker.reservation, request)
                for held in answer.held:
                    self._state.journal.append(Notice(name="artifacts", text=str(held)))

    def _on_start_failure(self, worker: Worker, ending: Exit) -> None:
        """Try again a few times when a machine may be the reason, else end the session.

        A node beside the head on which nothing starts is lost, so that it is no reason to end.
        """
        state = self._state
        if worker.machine_lost(ending) or was_killed(ending):
            if worker.machine_lost(ending):
                message = worker.loss or ending.why or "its node went down"
                state.damage = state.damage or message
            else:
                message = crash_text(ending, "before its first test")
            self._append_lost(worker, message)
            self._not_started[worker.home] += 1
            if self._not_started[worker.home] <= self._limits.infra_retries:
                return
            if self._cluster.is_other(worker.home):
                self._cluster.tell_lost(worker.home, f"no test process starts there: {message}")
            else:
                text = f"no test process could be started: {message}"
                state.end(StopReason.INFRASTRUCTURE, text)
            return
        if not state.selected:
            return  # the selection fails in the same way, and says so itself
        message = worker.refusal or crash_text(ending, "before its first test")
        text = with_last_output(f"a test process did not start: {message}", ending)
        state.journal.append(InternalError(text=text, worker=worker.name))
        state.end(StopReason.NOT_STARTED, message)

    def _append_lost(self, worker: Worker, message: str) -> None:
        self._state.journal.append(
            WorkerLost(
                worker=worker.name,
                failure_class=FailureClass.INFRASTRUCTURE,
                status=None,
                message=message,
            )
        )

    def _fail_timeout(self, worker: Worker, victim: Case, ending: Exit) -> None:
        limit_s = self._limits.test_timeout_s
        text = f"timeout: more than its limit of {limit_s:g} s in {worker.phase}"
        self._state.fail(
            victim,
            with_last_output(text, ending),
            FailureClass.TIMEOUT,
            when=worker.phase,
            duration_s=worker.timed_out_s,
            worker=worker.name,
        )

    def _fail_crash(self, worker: Worker, victim: Case, ending: Exit) -> None:
        running_s = time.monotonic() - worker.since
        text = crash_text(ending, f"in {worker.phase}")
        self._state.journal.append(
            WorkerLost(
                worker=worker.name,
                failure_class=FailureClass.CRASH,
                status=ending.status,
                message=f"{text} of {victim.nodeid}",
            )
        )
        self._state.fail(
            victim,
            with_last_output(text, ending),
            FailureClass.CRASH,
            when=worker.phase if worker.running else "setup",
            duration_s=running_s,
            worker=worker.name,
        )

    def _retry(self, worker: Worker, tests: list[Case], message: str) -> None:
        """Run lost tests again, on another node if possible; the running one spends an attempt."""
        state = self._state
        self._append_lost(worker, message)
        state.damage = state.damage or message
        waiting: list[Case] = []
        for test in tests:
            test.avoid.add(worker.home)
            if test is worker.running:
                test.attempt += 1
            if test.attempt > self._limits.infra_retries:
                text = f"infrastructure: {message} ({test.attempt} attempts)"
                state.fail(test, text, FailureClass.INFRASTRUCTURE)
            else:
                state.journal.append(
                    Retry(nodeid=test.nodeid, attempt=test.attempt, message=message)
                )
                waiting.append(test)
        state.backlog.put_back(waiting)


def _loss(worker: Worker, ending: Exit) -> str:
    return worker.loss or ending.why or "its process was lost with its node"
