"""Remote events become local pytest hooks, as if the tests had run on this machine.

`Replay` is fed by whoever owns the loop:

    replay = Replay(config)          # in pytest_configure; registers itself as a plugin
    replay.begin(session)            # in pytest_collection, before the first event
    replay.event(event)              # each in its order, until `stage` says that it needs no more
    replay.conclude()                # raises what plain pytest would raise there; or
    replay.fail_unfinished(...)      # when no further event will come
    replay.finalize(session)         # in pytest_sessionfinish, before reporters write
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import IntEnum
from types import MethodType

import pytest

from pytest_gpu_cluster.contract.codec import PathMap
from pytest_gpu_cluster.contract.events import (
    Collected,
    CollectorFinished,
    Deselected,
    Event,
    Finishing,
    Header,
    Hello,
    InternalError,
    Interrupted,
    LateRecords,
    Output,
    SelectionRestarted,
    SessionFinished,
    Summary,
    TestFinished,
    TestStarted,
    UsageError,
    WarningRaised,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.records import count_failures, crash_records
from pytest_gpu_cluster.contract.selection import Raised
from pytest_gpu_cluster.host import deserialize
from pytest_gpu_cluster.host.collection import Collection, adopt_caches
from pytest_gpu_cluster.host.cross_check import (
    EventOrder,
    changed_status,
    cross_check,
    tests_status,
)
from pytest_gpu_cluster.host.junit_order import JUnitOrder
from pytest_gpu_cluster.host.record_replay import RecordReplay
from pytest_gpu_cluster.host.remote_errors import (
    InterruptedTest,
    RemoteInternalError,
    interruption,
    notify_exception,
)
from pytest_gpu_cluster.host.terminal import SummaryWriter, Terminal


class Stage(IntEnum):
    """How far the replay has come."""

    SELECTING = 0  # until the selection is final; some of it is held back, for it may start again
    RUNNING = 1  # tests are replayed as they finish
    ENDED = 2  # no further event is needed


class Replay:
    """A pytest plugin that makes the hook calls of a remote session here."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.stage = Stage.SELECTING
        self.own_failures = 0  # of tests themselves, not of machines
        self.problems: list[str] = []  # each of them forbids exit code 0
        self.ended: SessionFinished | None = None
        self._tests_status = 0  # pytest's exit code for the tests, when the last event came
        self.terminal = Terminal(config)
        self._collection = Collection()
        self._junit = JUnitOrder(config)
        self._order = EventOrder()
        self._stop: BaseException | None = None  # ends the session here, once the remote one ended
        self._waiting: list[Event] = []  # of a selection that is not final
        self._running: dict[str, pytest.Item] = {}  # by node id
        self._records = RecordReplay(config, self.terminal, self._junit)
        self._usage = ""
        notify = MethodType(notify_exception, config)
        config.notify_exception = notify  # type: ignore[method-assign]
        config.pluginmanager.register(self, "gpu_cluster_replay")
        config.pluginmanager.register(self._records, "gpu_cluster_records")
        summary = SummaryWriter(self.terminal, self.problems)
        config.pluginmanager.register(summary, "gpu_cluster_summary")

    def path_here(self, path: str) -> str:
        """Return a path of the cluster as it is on this machine."""
        return self.terminal.paths.text(path)

    # -- the sink ----------------------------------------------------------------------------------

    def begin(self, session: pytest.Session) -> None:
        """Take the place of pytest's own collection."""
        self.session = session
        self._collecting = self.terminal.release()  # pytest's own "collecting ..."
        self.terminal.forget_local_warnings()

    def event(self, event: Event) -> None:
        """Replay one event; one that was replayed before is passed over, a gap is remembered."""
        if self.stage is Stage.ENDED or not self._order.admits(event, self.problems):
            return
        if self.stage is Stage.RUNNING:
            self._apply(event)
            if isinstance(event, TestFinished | LateRecords) and self._stop is None:
                self._check_stop()
            return
        match event:
            case SelectionRestarted():
                self._waiting.clear()
            case WarningRaised() | CollectorFinished() | Deselected() | Output():
                self._waiting.append(event)
            case Collected():
                self._waiting.append(event)
                self._show_selection(event.raised)
            case SessionFinished():
                self._show_selection(None)
                self._apply(event)
            case _:
                self._apply(event)

    def conclude(self) -> None:
        """Raise Failed, Interrupted, Exit … as pytest would at the end of what was replayed."""
        if self._stop is not None:
            raise self._stop
        if self.ended is None:
            self.problems.append("the events stopped before the end of the session")

    @property
    def must_end(self) -> bool:
        """True where no test will run: the rest belongs to the collection."""
        return self._stop is not None or self.ended is not None

    @property
    def complete(self) -> bool:
        """True where every collected test has a result."""
        return self._collection.complete and not any(self._collection.missing())

    def _show_selection(self, raised: Raised | None) -> None:
        """Replay what was held back: the selection is final."""
        self.stage = Stage.RUNNING
        self.terminal.write(self._collecting)
        for event in self._waiting:
            self._apply(event)
        self._waiting.clear()
        if raised is not None:
            kind = self.session.Failed if raised.kind == "failed" else self.session.Interrupted
            self._stop = kind(raised.text)

    def _check_stop(self) -> None:
        """End where the session is to stop here.

        A stop that the cluster knows of too is waited for, so that its own end is shown as well.
        """
        session = self.session
        if session.shouldfail:
            self._stop = session.Failed(session.shouldfail)
        elif session.shouldstop:
            self._stop = session.Interrupted(session.shouldstop)
            if not getattr(self.config.option, "stepwise", False):
                self.stage = Stage.ENDED

    def interrupt(self, problem: BaseException) -> None:
        """End for the user's `problem`, which is given the place of a test that ran.

        The cluster says it, or else the collection.
        """
        place = getattr(self._stop, "remote_repr", None)
        if place is None:
            running = next(iter(self._running.values()), None)
            place = InterruptedTest(running, type(problem).__name__)
        problem.__dict__.setdefault("remote_repr", place)
        self.ended = self.ended or SessionFinished()
        self._stop = problem

    def fail_unfinished(self, message: str, failure_class: FailureClass) -> None:
        """Make an error of every test without a result: no further event will come."""
        self.ended = self.ended or SessionFinished(failure_class=failure_class)
        for index, item in [*self._collection.missing()]:
            text = f"{failure_class}: {message}"
            records = crash_records(item.nodeid, item.location, when="setup", text=text)
            self._test(
                TestFinished(
                    nodeid=item.nodeid, index=index, records=records, failure_class=failure_class
                )
            )

    # -- events ------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        match event:
            case Hello():
                self.terminal.workers = event.workers
                self.terminal.paths = PathMap([(event.root, event.origin)])
            case Header():
                self.terminal.show_header(event.parts)
            case WarningRaised():
                self.terminal.warn(event.warning)
            case CollectorFinished():
                self._collect_report(event)
            case Deselected():
                self._deselected(event)
            case Collected():
                self._collected(event)
            case Output():
                self.terminal.show_output(event)
            case TestStarted():
                self._test_started(event)
            case TestFinished():
                self._test(event)
            case LateRecords():
                before = self._junit.count()
                self._records.replay(event.records)
                self._junit.join_since(before)
            case InternalError() | Interrupted() | UsageError():
                self._broken(event)
            case Finishing():
                self.terminal.finishing = True
            case Summary():
                self.terminal.keep_summary(event)
            case SessionFinished():
                self.ended, self.stage = event, Stage.ENDED
                self._tests_status = tests_status(self.session)
            case _:
                pass  # of phases and machines: other sinks show them

    def _deselected(self, event: Deselected) -> None:
        nodes = [
            deserialize.node(self.session, {"nodeid": nodeid, "name": nodeid}, item=True)
            for nodeid in event.nodeids
        ]
        self.config.hook.pytest_deselected(items=nodes)

    def _collect_report(self, event: CollectorFinished) -> None:
        report = deserialize.collect_report(self.config, self.terminal.paths(event.report))
        report.result = [
            deserialize.node(self.session, {"nodeid": nodeid, "name": name}, item=item)
            for item, nodeid, name in event.kids
        ]
        for node in report.result:
            self._collection.show(node)
        self.own_failures += report.failed
        self.config.hook.pytest_collectreport(report=report)

    def _collected(self, event: Collected) -> None:
        session = self.session
        self._collection.fill(session, event)
        adopt_caches(self.config, self._collection.items, event.stepwise)
        self.terminal.collection_lines = [*self.terminal.lines(event.parts)]
        self.terminal.mix_files()
        self.config.hook.pytest_collection_finish(session=session)
        if event.raised is None:
            session.testscollected = len(self._collection)
        self._junit.collected()
        self._collection.complete = event.run
        if event.problem:
            self._stop = self._stop or session.Interrupted(event.problem)

    def pytest_report_collectionfinish(self) -> list[str] | None:
        return self.terminal.collection_lines

    # -- tests -------------------------------------------------------------------------------------

    def _test_started(self, event: TestStarted) -> None:
        """With one worker, show a test's name while it runs: its live output follows."""
        place = self._collection.place(event)
        if place is None:
            return
        item = self._running[event.nodeid] = self._collection.items[place]
        if self.terminal.workers == 1 and self._stop is None:
            self._records.start(item)

    def _test(self, event: TestFinished) -> None:
        place = self._collection.place(event)
        self._running.pop(event.nodeid, None)
        repeated = event.index is not None and self._collection.is_reported(place)
        if self._stop is not None or repeated:
            return
        self._collection.report(place)
        own = event.failure_class is None or event.failure_class.of_tests
        self.own_failures += own and count_failures(event.records) > 0
        before = self._junit.count()
        self._records.replay(event.records, paths=event.paths)
        self._junit.place_since(before, len(self._collection) if place is None else place)

    # -- ends --------------------------------------------------------------------------------------

    def _broken(self, event: InternalError | Interrupted | UsageError) -> None:
        """End as the remote session did, by something else than its tests; the first counts."""
        if self._stop is not None:
            return
        text = self.path_here(event.text)
        match event:
            case UsageError():
                self._usage = text
                self._stop = pytest.UsageError()
            case InternalError():
                self._records.replay(event.records)
                self._stop = RemoteInternalError(text)
            case Interrupted():
                self._records.replay(event.records)
                self._stop = interruption(self.session, event, self.terminal.paths)

    @pytest.hookimpl(trylast=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        place = getattr(excinfo.value, "remote_repr", None)
        if place is not None and isinstance(excinfo.value, KeyboardInterrupt):
            self.terminal.interrupted_at(place)

    def finalize(self, session: pytest.Session) -> None:
        """Show the texts of the remote end, sort the JUnit cases, and make the cross-check."""
        self.terminal.show_late()
        self._junit.sort(len(self._collection))
        if self._stop is None:
            status = self._tests_status
            self.problems += cross_check(self.ended, self._collection, status, self.problems)
        if self.problems and session.exitstatus in (0, 1, 5):
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        elif self.ended is not None:
            session.exitstatus = changed_status(self.ended, int(session.exitstatus))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Iterator[None]:
        self.terminal.hold()
        try:
            return (yield)
        finally:
            self.terminal.write(self.terminal.release())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self) -> Iterator[None]:
        self.terminal.forget_local_warnings()
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        if self._usage:
            sys.stderr.write(self._usage)
