"""A cluster of plain subprocesses with a trivial scheduler, from which the rig replays."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from pytest_gpu_cluster.contract.events import (
    Collected,
    Event,
    InternalError,
    Interrupted,
    LateRecords,
    Message,
    Output,
    SessionFinished,
    Summary,
    TestFinished,
    TestStarted,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.messages import (
    CaptureFiles,
    Collecting,
    Done,
    Exit,
    Finished,
    FinishSession,
    Order,
    PhaseStarted,
    Ready,
    RunTests,
    ShowReports,
    Started,
    StopRunning,
    TestOrder,
    decode,
    encode,
)
from pytest_gpu_cluster.contract.records import ItemRow, TestRecord, count_failures, crash_records
from pytest_gpu_cluster.contract.request import PytestFacts
from pytest_gpu_cluster.contract.specs import ClusterFacts, Role, TreePlaces, WorkerSpec

ROOT = Path(__file__).resolve().parent.parent
FACTS = ClusterFacts(id="c1", session="s1", nodes=1, store="file:///nowhere", prefix="sessions/s1")


class Process:
    """A worker in a process of its own."""

    def __init__(self, spec: WorkerSpec, arrivals: Arrivals) -> None:
        self.name = spec.worker
        self.channel, remote = socket.socketpair()
        self.queue: list[int] = []
        self.running: int | None = None
        self.when = "setup"
        self.finishing = False
        entry = f"from tests.replay_cluster import worker; worker({remote.fileno()})"
        with Path(spec.scratch + ".log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", entry],
                pass_fds=[remote.fileno()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("RIG_")},
                    "PYTHONPATH": str(ROOT),
                },
            )
        remote.close()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(spec.to_json()).encode())
        self.process.stdin.close()
        threading.Thread(target=self.pump, args=(arrivals,), daemon=True).start()

    def pump(self, arrivals: Arrivals) -> None:
        with contextlib.suppress(ConnectionResetError), self.channel.makefile("rb") as lines:
            for line in lines:
                arrivals.put((self, decode(line)))
        self.channel.close()
        arrivals.put((self, Exit(status=self.process.wait())))

    def send(self, order: Order) -> None:
        with contextlib.suppress(OSError):
            self.channel.sendall(encode(order))


Arrivals: TypeAlias = "queue.Queue[tuple[Process, Message]]"


def worker(descriptor: int) -> None:
    """Run a worker; the entry of the subprocess."""
    from pytest_gpu_cluster.worker.main import main

    spec = json.loads(sys.stdin.buffer.read())
    sys.path[:] = [path for path in sys.path if path != ""]
    code = main(spec, socket.socket(fileno=descriptor))
    sys.stdout.flush()
    os._exit(code)


class Cluster:
    """The least that an agent does: select, hand out, count failures, make a dead worker its test's
    failure.
    """

    def __init__(self, config: pytest.Config, facts: PytestFacts) -> None:
        from pytest_gpu_cluster.bundle.ship import tree_name

        self.folder = Path(os.environ["RIG_FAR"])
        self.workers = int(os.environ["RIG_WORKERS"])
        self.arrivals: Arrivals = queue.Queue()
        self.seq = 0
        origin = config.rootpath
        root = self.folder / "tree" / tree_name(origin, config.invocation_params.dir)
        shutil.rmtree(self.folder, ignore_errors=True)
        root.parent.mkdir(parents=True)
        shutil.copytree(origin, root, symlinks=True)
        self.spec = WorkerSpec(
            role=Role.SELECT,
            tree=TreePlaces(
                root=str(root),
                origin=str(origin),
                rootdir=str(root),
                cwd=str(root / os.path.relpath(config.invocation_params.dir, origin)),
            ),
            client=facts,
            args=tuple(own_arguments(tuple(map(str, config.invocation_params.args)))),
            env={k: v for k, v in os.environ.items() if not k.startswith("RIG_")},
            worker="main",
            workers=self.workers,
            testrun="run1",
            scratch="",
            gpus=(),
            ray=None,
            cluster=FACTS,
            crashed_files={},
            quarantined=(),
        )
        self.tests: Sequence[ItemRow] = ()
        self.pending: list[int] = []
        self.processes: list[Process] = []
        self.selector: Process | None = None
        self.stopping = False
        self.failures = 0
        self.worker_status = 0
        self.maxfail = 0
        self.records: list[Sequence[TestRecord]] = []

    def start(self, role: Role, name: str) -> Process:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = str(self.folder / name)
        return Process(replace(self.spec, role=role, worker=name, scratch=scratch), self.arrivals)

    def stamp(self, event: Event) -> Event:
        """Return an event as the journal would give it back."""
        self.seq += 1
        entry = json.loads(json.dumps(event.to_message()))
        return Event.of({**entry, "v": 1, "seq": self.seq, "writer": "agent"})

    def events(self) -> Iterator[Event]:
        for event in self.raw_events():
            yield self.stamp(event)

    def raw_events(self) -> Iterator[Event]:
        self.selector = self.start(Role.SELECT, "main")
        waiting = False  # for the tests to end
        ending: Done | None = None
        try:
            while self.selector is not None:
                process, message = self.arrivals.get(timeout=40)
                if process is not self.selector:
                    yield from self.on_worker(process, message)
                elif isinstance(message, Exit):
                    self.selector = None
                elif isinstance(message, Done):
                    ending = message
                elif not isinstance(message, Collecting | Ready | CaptureFiles):
                    assert isinstance(message, Event)
                    yield message
                    if isinstance(message, Collected):
                        self.on_collected(message)
                        waiting = True
                busy = self.pending or self.processes
                if waiting and not busy and self.selector is not None and ending is None:
                    waiting = False
                    self.finish_selection(self.selector)
            end = ending if ending is not None else Done(exitstatus=None)
            yield SessionFinished(
                pytest_status=end.exitstatus,
                tests_status=end.tests_status,
                worker_status=self.worker_status,
                shouldfail=end.shouldfail,
                shouldstop=end.shouldstop,
            )
        finally:
            for each in [*self.processes, *([self.selector] if self.selector else [])]:
                each.process.kill()
                each.process.wait()

    def finish_selection(self, selector: Process) -> None:
        limited = self.maxfail and self.failures >= self.maxfail
        selector.send(ShowReports(tests=self.records))
        selector.send(
            FinishSession(
                shouldfail=f"stopping after {self.failures} failures" if limited else "",
                testsfailed=self.failures,
            )
        )

    def on_collected(self, message: Collected) -> None:
        self.tests = message.items
        self.maxfail = message.options.maxfail or 0
        if message.run and self.tests:
            self.pending = list(range(len(self.tests)))
            self.processes = [self.start(Role.RUN, f"gw{n}") for n in range(self.workers)]

    def on_worker(self, process: Process, message: Message) -> Iterator[Event]:
        match message:
            case Ready():
                self.feed(process)
            case Started():
                process.running, process.when = process.queue[0], "setup"
                yield TestStarted(nodeid=message.nodeid, attempt=0, worker=process.name)
            case PhaseStarted():
                process.when = message.when
            case Finished():
                index = process.queue.pop(0)
                process.running = None
                yield from self.commit(index, message.records, process, None)
                self.feed(process)
            case LateRecords() | Output():
                yield replace(message, worker=process.name)
                if isinstance(message, LateRecords):
                    self.failures += count_failures(message.records)
            case Done(exitstatus=status, tests_status=0):
                self.worker_status = self.worker_status or status or 0
            case Summary():
                yield replace(message, worker=process.name)
            case Interrupted() | InternalError():
                yield replace(message, worker=process.name)
                self.stop()
            case Exit():
                self.processes.remove(process)
                if process.queue and not self.stopping:
                    yield from self.on_crash(process, message.status or 0)

    def on_crash(self, process: Process, status: int) -> Iterator[Event]:
        index = process.queue.pop(0)
        test = self.tests[index]
        name = signal.Signals(-status).name if status < 0 else f"exit {status}"
        records = crash_records(
            test["nodeid"],
            test["location"],
            when=process.when,
            text=f"crash: {name}",
            duration_s=0.1,
        )
        yield from self.commit(index, records, process, FailureClass.CRASH)
        self.pending[:0] = process.queue
        if self.pending and not self.stopping:
            self.processes.append(self.start(Role.RUN, f"{process.name}b"))

    def commit(
        self,
        index: int,
        records: Sequence[TestRecord],
        process: Process,
        failure_class: FailureClass | None,
    ) -> Iterator[Event]:
        if self.stopping:
            return
        yield TestFinished(
            nodeid=self.tests[index]["nodeid"],
            index=index,
            worker=process.name,
            records=records,
            failure_class=failure_class,
        )
        self.records.append(records)
        self.failures += count_failures(records)
        if self.maxfail and self.failures >= self.maxfail:
            self.stop()

    def stop(self) -> None:
        self.stopping, self.pending = True, []
        for process in self.processes:
            if process.running is not None:
                process.send(StopRunning())
                process.process.send_signal(signal.SIGINT)
            process.send(FinishSession())

    def feed(self, process: Process) -> None:
        if process.finishing or process.queue:
            return
        if not self.pending:
            process.finishing = True
            process.send(FinishSession())
            return
        count = len(self.pending) if self.workers == 1 else 1
        process.queue, self.pending = self.pending[:count], self.pending[count:]
        occurrences: dict[str, int] = {}
        orders = []
        for index in process.queue:
            row = self.tests[index]
            nodeid = row["nodeid"]
            outside = tuple(row["outside"] or ())
            orders.append(
                TestOrder(nodeid=nodeid, occurrence=occurrences.get(nodeid, 0), outside=outside)
            )
            occurrences[nodeid] = occurrences.get(nodeid, 0) + 1
        process.send(RunTests(tests=tuple(orders), last=self.workers == 1))


def own_arguments(args: tuple[str, ...]) -> Iterator[str]:
    """The arguments without the plugin itself."""
    waiting = iter(args)
    for arg in waiting:
        if arg == "-p" and (name := next(waiting)) == "tests.replay_rig":
            continue
        yield from (arg, name) if arg == "-p" else (arg,)
