"""A pytest session in a process of its own, told what to run over a socket. `main` is the entry of the forked process.

Two roles share it: `select` collects once with the user's full arguments (`pytest_gpu_cluster.worker.select`), `run` collects only the
files that it is given and runs tests in the order in which they arrive.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from _pytest.junitxml import mangle_test_address

import pytest_gpu_cluster
from pytest_gpu_cluster import fixtures
from pytest_gpu_cluster.contract.codec import crash_records, to_wire
from pytest_gpu_cluster.worker import prepare
from pytest_gpu_cluster.worker.collect import LazyItems
from pytest_gpu_cluster.worker.role import Role
from pytest_gpu_cluster.worker.select import Select
from pytest_gpu_cluster.worker.serialize import report_data
from pytest_gpu_cluster.worker.streams import Channel, standard_stream

STACKS_SIGNAL = signal.SIGRTMAX - 1  # from outside: write the stacks of all threads to stderr
STOPPING = (KeyboardInterrupt, pytest.exit.Exception)


def main(spec: dict[str, Any], channel: socket.socket) -> int:
    """Run one session as `spec` says; returns 0 when its end was told (`done`), whatever its tests did."""
    faulthandler.register(STACKS_SIGNAL, file=os.dup(2), all_threads=True)
    prepare.environment(spec)
    prepare.write_cache(spec)
    options = prepare.Options(spec)
    kind = Select if spec["role"] == "select" else Run
    role = kind(spec, Channel(channel), options)
    arguments = prepare.arguments(spec)
    sys.argv = ["pytest", *spec["args"]]
    pytest_gpu_cluster.__doc__ = (
        "PYTEST_DONT_REWRITE"  # else pytest warns that this plugin of its was imported before it
    )
    sys.stdout = standard_stream(1, lambda text: role.text("out", text))
    sys.stderr = standard_stream(2, lambda text: role.text("err", text))
    role.end(int(pytest.main(arguments, plugins=[options, fixtures, role])))
    return 0


class Hold(pytest.Item):
    """Stands in for a next test that is not known yet: whatever its parents share stays set up."""

    def runtest(self) -> None:
        raise AssertionError("the stand-in for an unknown next test was run")


class Run(Role):
    """Runs what it is told, and holds nothing back to know what comes next."""

    def __init__(self, spec: dict[str, Any], channel: Channel, options: prepare.Options) -> None:
        super().__init__(spec, channel, options)
        self.tests = LazyItems()
        self.queue: deque[dict[str, Any]] = deque()
        self.arrived: list[dict[str, Any]] = []  # orders whose files may have to be collected
        self.last = False  # nothing will follow what is queued
        self.over = False
        self.previous: tuple[pytest.Item, dict[str, Any]] | None = None
        self.records: list[dict[str, Any]] | None = None
        self.live = False
        self.capture = "no"
        self.shown = False  # the test in hand has a visible status already

    # -- what is heard -------------------------------------------------------------------------------------------------

    def summarises(self, plugin: str) -> bool:
        return False  # there is one summary, after all tests: the selecting session's

    def listen(self, session: pytest.Session, *, wait: bool) -> None:
        """Take in orders; with `wait`, until there is something to do."""
        while not self.over:
            message = self.channel.receive(wait=wait and not self.queue)
            if message is None:
                self.over = self.over or self.channel.closed
                return
            if "run" in message:
                self.queue.extend(message["run"])
                self.arrived += message["run"]
                self.last = bool(message.get("last"))
            elif "stop" in message:
                session.shouldstop = session.shouldstop or "stopped"
                self.over = True
            elif "finish" in message:
                self.last = self.over = True

    # -- the session ---------------------------------------------------------------------------------------------------

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self.tests, "gpu_cluster_items")
        option = config.option
        logs = hasattr(option, "log_cli_level") and (
            option.log_cli_level or config.getini("log_cli")
        )
        self.capture = getattr(option, "capture", "no")
        self.live = (
            self.capture in ("no", "tee-sys")
            or bool(logs)
            or bool(getattr(option, "setupshow", False))
        )
        self.log_file = bool(getattr(option, "log_file", None))
        self.stepwise = self.options.asked.get("stepwise") and not self.options.asked.get(
            "stepwise_skip"
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> bool:
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.send_capture_files()
        self.channel.send("ready")
        self.listen(session, wait=True)
        while self.queue and not self.over:
            self.one(session, self.queue.popleft())
            stopped = session.shouldfail or session.shouldstop
            if stopped:
                self.tell_stop(session)
                self.queue.clear()
            self.listen(session, wait=True)
        self.channel.flush()
        self.settle(session, None)
        self.end_of_tests(session)
        return True

    def tell_stop(self, session: pytest.Session) -> None:
        """A test or a hook of the user ended the session; a limit on failures is counted by the agent too."""
        maxfail = session.config.option.maxfail
        if maxfail and session.testsfailed >= maxfail:
            return
        if not self.over and not self.stepwise:
            self.channel.send(
                "interrupted",
                shouldfail=session.shouldfail,
                shouldstop=session.shouldstop,
                text=str(session.shouldfail or session.shouldstop),
            )

    def end_of_tests(self, session: pytest.Session) -> None:
        """What a plain session raises here; nothing of it is shown, but the user's hooks see the exit status."""
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)

    def send_capture_files(self) -> None:
        """The files in which pytest keeps what a test prints: a supervisor reads them when the process is gone."""
        manager: Any = self.config.pluginmanager.get_plugin("capturemanager")
        capture = getattr(manager, "_global_capturing", None)
        files = [getattr(getattr(capture, name, None), "tmpfile", None) for name in ("out", "err")]
        descriptors: list[int] = []
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptors = [file.fileno() for file in files if file is not None]
        self.channel.send_descriptors("capture_fds", descriptors, n=len(descriptors))

    # -- one test ------------------------------------------------------------------------------------------------------

    def one(self, session: pytest.Session, order: dict[str, Any]) -> None:
        nodeid, attempt = order["nodeid"], order.get("attempt", 0)
        if self.arrived:
            self.channel.flush()
            arrived, self.arrived = self.arrived, []
            self.tests.collect(session, arrived)
        item = self.tests.get(order)
        if item is None:
            self.refuse(session, order)
            return
        self.put_aside(item)
        self.settle(session, item)
        self.channel.send("started", nodeid=nodeid, attempt=attempt)
        self.records, self.shown = [], False
        began = time.perf_counter()
        try:
            item.config.hook.pytest_runtest_protocol(
                item=item, nextitem=self.next_item(session, item)
            )
        except BaseException:
            self.interrupted_in = {"nodeid": nodeid, "attempt": attempt, "records": self.records}
            raise
        finally:
            records, self.records = self.records, None
        duration_s = time.perf_counter() - began
        self.channel.hold(
            "finished",
            nodeid=nodeid,
            attempt=attempt,
            records=[*records, *self.last_records(nodeid)],
            duration_s=duration_s,
        )
        self.previous = (item, order)

    def put_aside(self, item: pytest.Item) -> None:
        """Skip a test that people have quarantined at their CI host, which names it as JUnit does."""
        *above, name = mangle_test_address(item.nodeid)
        for package, class_, wanted in self.spec.get("quarantined") or ():
            places = {
                place for place in (class_, package, f"{package}.{class_}") if place.strip(".")
            }
            if (
                name == wanted
                and ".".join(above) in places
                and item.get_closest_marker("skip") is None
            ):
                item.add_marker(pytest.mark.skip(reason="quarantined at the CI host"))

    def last_records(self, nodeid: str) -> Iterator[dict[str, Any]]:
        yield from self.take_lossy(nodeid)
        if self.log_file:
            yield from self.log_file_records()

    def next_item(self, session: pytest.Session, item: pytest.Item) -> pytest.Item | None:
        self.listen(session, wait=False)
        if session.shouldfail or session.shouldstop:
            return None
        for order in self.queue:
            if (found := self.tests.get(order)) is not None:
                return found
        if self.last:
            return None
        assert item.parent is not None
        return Hold.from_parent(item.parent, name="<next>")

    def refuse(self, session: pytest.Session, order: dict[str, Any]) -> None:
        """A node id that this process cannot find is that test's error."""
        nodeid, attempt = order["nodeid"], order.get("attempt", 0)
        path, _, name = nodeid.partition("::")
        self.channel.send("started", nodeid=nodeid, attempt=attempt)
        records = crash_records(
            nodeid, (path, None, name), when="setup", text=self.tests.why(session, order)
        )
        self.channel.send(
            "finished", nodeid=nodeid, attempt=attempt, records=records, duration_s=0.0
        )

    def settle(self, session: pytest.Session, following: pytest.Item | None) -> None:
        """Tear down what the stand-in had kept and the next test does not need; an error belongs to the previous test."""
        if self.previous is None:
            return
        item, order = self.previous
        state = session._setupstate
        if following is None:
            self.previous = None
        if (
            not state.stack
            or list(state.stack) == (following.listchain() if following else [])[: len(state.stack)]
        ):
            return
        self.channel.flush()
        self.records, self.shown = [], True
        reraise = STOPPING
        call = pytest.CallInfo.from_call(
            lambda: self.teardown(item, following), when="teardown", reraise=reraise
        )
        if call.excinfo is not None:
            report = item.ihook.pytest_runtest_makereport(item=item, call=call)
            item.ihook.pytest_runtest_logreport(report=report)
        records, self.records = self.records, None
        if records:
            records += self.last_records(item.nodeid)
            self.channel.send(
                "late", nodeid=item.nodeid, attempt=order.get("attempt", 0), records=records
            )

    @staticmethod
    def teardown(item: pytest.Item, following: pytest.Item | None) -> None:
        manager: Any = item.config.pluginmanager.get_plugin("capturemanager")
        with manager.item_capture("teardown", item) if manager else contextlib.nullcontext():
            item.session._setupstate.teardown_exact(following)

    # -- what pytest says about it -------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Only a test that is marked `ray` finds the cluster, from its setup to its teardown."""
        ray = self.spec.get("ray")
        if not ray or item.get_closest_marker("ray") is None:
            return (yield)
        named = {
            "RAY_ADDRESS": ray["address"],
            "RAY_AUTH_MODE": "token" if ray["token"] else "",
            "RAY_AUTH_TOKEN": ray["token"],
        }
        before = {name: os.environ.get(name) for name in named}
        os.environ.update({name: value for name, value in named.items() if value})
        try:
            return (yield)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.channel.send("phase", when="call")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self.channel.send("phase", when="teardown")

    def record(self, **record: Any) -> None:
        if self.records is not None:
            self.flush()
            self.records.append(record)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.record(kind="logstart", nodeid=nodeid, location=list(location))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, Any, Any]:
        """The report takes its place before what other plugins print about it, and is read after they have changed it.

        The status is asked first, as the reporter does: subtests turn their test into a failure only then.
        """
        if self.records is None:
            return (yield)
        self.flush()
        status = self.config.hook.pytest_report_teststatus(report=report, config=self.config)
        self.shown = self.shown or bool(status and any(status[1:]))
        record: dict[str, Any] = {
            "kind": "report",
            "report": None,
            "status": to_wire(status) if status else None,
        }
        self.records.append(record)
        try:
            return (yield)
        finally:
            self.flush()
            record["report"] = report_data(self.config, report, self.lossy)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.record(kind="logfinish", nodeid=nodeid, location=list(location))

    def hear_warning(self, record: dict[str, Any]) -> None:
        if record["when"] == "runtest":
            self.record(**record)

    def hear_xml(self, **record: Any) -> None:
        self.record(**record)

    # -- texts ---------------------------------------------------------------------------------------------------------

    def emit_text(self, via: str, text: str) -> None:
        """Live while a test that asked for it runs; else inside its records; between tests to the process's own streams."""
        if self.records is None:
            if self.capture != "no":
                os.write(2 if via == "err" else 1, text.encode("utf-8", "backslashreplace"))
        elif self.live and not self.shown:
            self.channel.send(**self.said(via, text))
        else:
            self.records.append(self.said(via, text))
            if threading.current_thread() is not threading.main_thread():
                os.write(
                    2, text.encode("utf-8", "backslashreplace")
                )  # pytest-timeout ends the process next, and the records with it
