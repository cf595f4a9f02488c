"""The role that runs tests, in the order in which they arrive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator

import pluggy
import pytest
from _pytest.capture import CaptureManager

from pytest_gpu_cluster.contract.codec import to_wire
from pytest_gpu_cluster.contract.events import Interrupted, LateRecords, Summary
from pytest_gpu_cluster.contract.messages import (
    CaptureFiles,
    Finished,
    PhaseStarted,
    Ready,
    Started,
    TestOrder,
)
from pytest_gpu_cluster.contract.records import (
    ReportRecord,
    TestRecord,
    WarningRecord,
    XmlRecord,
    crash_records,
)
from pytest_gpu_cluster.contract.specs import WorkerSpec
from pytest_gpu_cluster.worker import snapshots
from pytest_gpu_cluster.worker.benchmarks import Benchmarks
from pytest_gpu_cluster.worker.collect import LazyItems
from pytest_gpu_cluster.worker.gpu_use import GpuUse
from pytest_gpu_cluster.worker.hooks import module_of, surround, third_party
from pytest_gpu_cluster.worker.orders import OrderQueue, Supply
from pytest_gpu_cluster.worker.prepare import Options
from pytest_gpu_cluster.worker.quarantine import Quarantine
from pytest_gpu_cluster.worker.ray_use import RayUse
from pytest_gpu_cluster.worker.recorder import Recorder
from pytest_gpu_cluster.worker.role import RemoteSession, RunningTest, stop_request
from pytest_gpu_cluster.worker.selection_facts import stepwise_limit
from pytest_gpu_cluster.worker.serialize import LogFile, report_data
from pytest_gpu_cluster.worker.streams import Channel, Via

STOPPING = (KeyboardInterrupt, pytest.exit.Exception)
# Modules of plugins that report on the process that ran the tests: the client's copy has nothing.
REPORTING = (
    *("inline_snapshot.pytest_plugin", "pytest_codspeed.plugin", "pytest_durations.plugin"),
    *("pytest_memray.plugin", "pytest_profiling"),
)
CALL_STARTED = PhaseStarted(when="call")
TEARDOWN_STARTED = PhaseStarted(when="teardown")


class UnknownNext(pytest.Item):
    """Stands in for a next test that is not known yet, so that its likely fixtures stay set up."""

    def runtest(self) -> None:
        raise AssertionError("the stand-in for an unknown next test was run")


class RunningSession(RemoteSession):
    """Runs a test at once when it arrives: none is held back until its successor is known."""

    log_file: LogFile | None  # None: the user has none
    benchmarks: Benchmarks

    def __init__(self, spec: WorkerSpec, channel: Channel, options: Options) -> None:
        super().__init__(spec, channel, options)
        self.items = LazyItems()
        self.orders = OrderQueue(channel)
        self.recorder = Recorder(channel)
        self.quarantine = Quarantine(spec.quarantined)
        self.gpu_use = GpuUse()
        self.stepwise_limit = 0  # failures after which no further test starts; 0: any number
        # The last test, whose higher fixtures may still be set up; None: all is torn down.
        self.previous: tuple[pytest.Item, TestOrder] | None = None

    def unused_gpu(self) -> int:
        return self.gpu_use.unused()

    def shows_summary_of(self, implementation: pluggy.HookImpl) -> bool:
        return module_of(implementation) in REPORTING  # of others, the selecting session's is shown

    # -- the session -------------------------------------------------------------------------------

    def pytest_configure(self, config: pytest.Config) -> None:
        self.stepwise_limit = stepwise_limit(self.options.typed)
        config.pluginmanager.register(self.items, "gpu_cluster_items")
        config.pluginmanager.register(RayUse(self.spec), "gpu_cluster_ray")
        config.pluginmanager.register(self.gpu_use, "gpu_cluster_gpu_use")
        self.recorder.configure(config)
        self.benchmarks = Benchmarks(config)
        self.log_file = (
            LogFile(self.spec.scratch) if getattr(config.option, "log_file", None) else None
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> bool:
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        snapshots.expect_report(session.config)
        self.send_capture_files()
        self.channel.send(Ready())
        while (order := self.orders.take(session)) is not None:
            self.run_test(session, order)
            if self.stepwise_limit and session.testsfailed >= self.stepwise_limit:
                session.shouldstop = session.shouldstop or "stepwise"  # the agent ends the session
            if session.shouldfail or session.shouldstop:
                self.send_interruption(session)
                self.orders.waiting.clear()
        self.channel.flush()
        self.tear_down_previous(session, None)
        self.raise_stop(session)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Send what plugins report of the tests that this process has run."""
        self.tests_status = int(session.exitstatus)
        hook = session.config.pluginmanager.hook
        for caller in (hook.pytest_sessionfinish, hook.pytest_terminal_summary):
            for implementation in third_party(caller):
                if (module := module_of(implementation)) in REPORTING:
                    surround(implementation, self.part_of(module))
        result = yield
        self.snapshots = snapshots.report(session.config)
        self.texts.flush()
        if self.parts:
            self.channel.send(Summary(parts=self.parts))
        return result

    def send_interruption(self, session: pytest.Session) -> None:
        """Send that a test or a hook of the user ended the session.

        A limit on failures is counted by the agent too.
        """
        maxfail = session.config.option.maxfail
        if maxfail and session.testsfailed >= maxfail:
            return
        if not self.orders.ended and not self.stepwise_limit:
            self.channel.send(
                Interrupted(
                    text=str(session.shouldfail or session.shouldstop),
                    shouldfail=stop_request(session.shouldfail),
                    shouldstop=stop_request(session.shouldstop),
                )
            )

    @staticmethod
    def raise_stop(session: pytest.Session) -> None:
        """Raise what a plain session raises at the end of its tests.

        Nothing of it is shown, but the user's hooks see the exit status.
        """
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)

    def send_capture_files(self) -> None:
        """Send the files in which pytest keeps what a test prints.

        A supervisor reads them when the process is gone.
        """
        manager = self.config.pluginmanager.get_plugin("capturemanager")
        capture = getattr(manager, "_global_capturing", None)
        files = [getattr(getattr(capture, name, None), "tmpfile", None) for name in ("out", "err")]
        descriptors: list[int] = []
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptors = [file.fileno() for file in files if file is not None]
        self.channel.send_descriptors(CaptureFiles(n=len(descriptors)), descriptors)

    # -- a test ------------------------------------------------------------------------------------

    def run_test(self, session: pytest.Session, order: TestOrder) -> None:
        nodeid, attempt = order.nodeid, order.attempt
        if orders := self.orders.take_uncollected():
            self.channel.flush()
            self.items.collect(session, orders)
        item = self.items.get(order)
        if item is None:
            self.send_missing(session, order)
            return
        self.quarantine.skip(item)
        self.tear_down_previous(session, item)
        self.channel.send(Started(nodeid=nodeid, attempt=attempt))
        records = self.recorder.start()
        start = time.perf_counter()
        try:
            item.config.hook.pytest_runtest_protocol(
                item=item, nextitem=self.next_item(session, item)
            )
        except BaseException:
            self.interrupted_in = RunningTest(nodeid=nodeid, attempt=attempt, records=records)
            raise
        finally:
            self.recorder.stop()
        duration_s = time.perf_counter() - start
        records += self.closing_records(nodeid)
        self.channel.hold(
            Finished(nodeid=nodeid, attempt=attempt, records=records, duration_s=duration_s)
        )
        self.previous = (item, order)

    def closing_records(self, nodeid: str) -> Iterator[TestRecord]:
        """Yield the records that follow those of a test's hooks."""
        yield from self.lossy.warnings(nodeid)
        yield from self.benchmarks.new_records()
        if self.log_file is not None:
            yield from self.log_file.new_records()

    def next_item(self, session: pytest.Session, item: pytest.Item) -> pytest.Item | None:
        """Return the next test, or a stand-in while more may follow."""
        self.orders.receive(session, wait=False)
        if session.shouldfail or session.shouldstop:
            return None
        for order in self.orders.waiting:
            if (following := self.items.get(order)) is not None:
                return following
        if self.orders.supply is not Supply.OPEN:
            return None
        assert item.parent is not None
        stand_in: pytest.Item = UnknownNext.from_parent(item.parent, name="<next>")
        return stand_in

    def send_missing(self, session: pytest.Session, order: TestOrder) -> None:
        """Make a node id that this process does not have that test's error."""
        nodeid, attempt = order.nodeid, order.attempt
        path, _, name = nodeid.partition("::")
        self.channel.send(Started(nodeid=nodeid, attempt=attempt))
        text = self.items.explain_missing(session, order)
        records = crash_records(nodeid, (path, None, name), when="setup", text=text)
        self.channel.send(Finished(nodeid=nodeid, attempt=attempt, records=records, duration_s=0.0))

    def tear_down_previous(self, session: pytest.Session, following: pytest.Item | None) -> None:
        """Tear down what the stand-in had kept and the following test does not need.

        An error belongs to the previous test.
        """
        if self.previous is None:
            return
        item, order = self.previous
        if following is None:
            self.previous = None
        stack = list(session._setupstate.stack)
        if not stack or stack == (following.listchain() if following else [])[: len(stack)]:
            return
        self.channel.flush()
        records = self.recorder.start(shown=True)
        call = pytest.CallInfo.from_call(
            lambda: tear_down(item, following), when="teardown", reraise=STOPPING
        )
        if call.excinfo is not None:
            if isinstance(item, pytest.Function):
                item.funcargs = item.funcargs or {}  # pytest has put None there; plugins look
            report = item.ihook.pytest_runtest_makereport(item=item, call=call)
            item.ihook.pytest_runtest_logreport(report=report)
        self.recorder.stop()
        if records:
            records += self.closing_records(item.nodeid)
            self.channel.send(
                LateRecords(nodeid=item.nodeid, records=records, attempt=order.attempt)
            )

    # -- hooks of a test ---------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.channel.send(CALL_STARTED)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self.channel.send(TEARDOWN_STARTED)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.record({"kind": "logstart", "nodeid": nodeid, "location": list(location)})

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(
        self, report: pytest.TestReport
    ) -> Generator[None, object, object]:
        """Record a report before what other plugins print of it, as it is when they changed it.

        The status is asked first. pytest's reporter asks later: subtests turn their test into a
        failure only then, when it is counted already.
        """
        records = self.recorder.records
        if records is None:
            return (yield)
        self.texts.flush()
        outcome, longrepr = report.outcome, report.longrepr
        status = self.config.hook.pytest_report_teststatus(report=report, config=self.config)
        changed = report.outcome != outcome
        report.outcome, report.longrepr = outcome, longrepr
        if status and any(status[1:]):
            self.recorder.shown = True
        record: ReportRecord = {
            "kind": "report",
            "report": {"nodeid": report.nodeid, "outcome": report.outcome, "longrepr": None},
            "status": to_wire(status) if status else None,
        }
        if changed:
            record["counted"] = outcome
        records.append(record)
        try:
            return (yield)
        finally:
            self.texts.flush()
            record["report"] = report_data(self.config, report, self.lossy.names)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.record({"kind": "logfinish", "nodeid": nodeid, "location": list(location)})

    # -- records -----------------------------------------------------------------------------------

    def record(self, record: TestRecord) -> None:
        """Add a record behind the texts that were written before it, if a test runs."""
        if self.recorder.records is not None:
            self.texts.flush()
            self.recorder.records.append(record)

    def on_warning(self, record: WarningRecord) -> None:
        if record["when"] == "runtest":
            self.record(record)

    def on_xml(self, record: XmlRecord) -> None:
        self.record(record)

    def emit_text(self, via: Via, text: str) -> None:
        self.recorder.add_text(via, text, fresh=via == "tw" and self.at_line_start())


def tear_down(item: pytest.Item, following: pytest.Item | None) -> None:
    """Tear down what `following` does not need; the output counts as that of `item`."""
    manager: CaptureManager | None = item.config.pluginmanager.get_plugin("capturemanager")
    with manager.item_capture("teardown", item) if manager else contextlib.nullcontext():
        item.session._setupstate.teardown_exact(following)
