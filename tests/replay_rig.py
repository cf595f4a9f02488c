"""Replay without a cluster: real workers as subprocesses, a trivial scheduler, a throw-away plugin.

`compare(scenario, tmp_path)` runs plain pytest and the replayed pytest on the same files and
returns both outcomes, normalised, so that a test can say they are equal. The shipped tree lies at
another absolute path, as on a real node.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

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
    TestFinished,
    TestStarted,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.messages import (
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
from pytest_gpu_cluster.contract.records import ItemRow, TestRecord, crash_records
from pytest_gpu_cluster.contract.specs import ClusterFacts, Role, WorkerSpec

ROOT = Path(__file__).resolve().parent.parent
# Unix seconds: the first event is written a second later, and every second one more.
EPOCH = 1_700_000_000.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A small project and how pytest is started in it."""

    files: dict[str, str]
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "."
    workers: int = 1
    before: tuple[
        tuple[str, ...], ...
    ] = ()  # arguments of earlier runs of the same side, for the cache
    differs: tuple[str, ...] = ()  # parts of the outcome that are known not to be equal
    change: dict[str, str] = field(default_factory=dict)  # files written after the earlier runs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    exitcode: int
    out: str
    err: str
    junit: str
    cache: dict[str, Any]
    raw: str
    project: Path


def compare(scenario: Scenario, tmp_path: Path) -> tuple[Outcome, Outcome]:
    """Return the plain and the replayed outcome of a scenario.

    Each has a directory of its own with the same name.
    """
    return run(scenario, tmp_path / "plain", replayed=False), run(
        scenario, tmp_path / "replayed", replayed=True
    )


def run(scenario: Scenario, home: Path, *, replayed: bool) -> Outcome:
    """Run one side of a scenario."""
    project = home / "project"
    write(project, scenario.files)
    for args in scenario.before:
        start(scenario, home, args, replayed=replayed)
    write(project, scenario.change)
    done = start(scenario, home, scenario.args, replayed=replayed)
    junit = project / "junit.xml"
    values = project / ".pytest_cache" / "v" / "cache"
    cache = (
        {path.name: json.loads(path.read_text()) for path in sorted(values.glob("*"))}
        if values.exists()
        else {}
    )
    if "stepwise" in cache:
        cache["stepwise"].pop("last_cache_date_str", None)
    return Outcome(
        exitcode=done.returncode,
        out=normal(done.stdout, home),
        err=normal(done.stderr, home),
        raw=done.stdout,
        junit=normal(junit.read_text(), home) if junit.exists() else "",
        cache=cache,
        project=project,
    )


def write(project: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def start(
    scenario: Scenario, home: Path, args: tuple[str, ...], *, replayed: bool
) -> subprocess.CompletedProcess[str]:
    base = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "CI", "BUILD_NUMBER", "COV"))
    }
    env = {
        **base,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
        "PYTHONDONTWRITEBYTECODE": "1",
        **scenario.env,
    }
    loaded = ["-p", "tests.replay_rig" if replayed else "pytest_gpu_cluster.fixtures"]
    env.update(
        {"RIG_WORKERS": str(scenario.workers), "RIG_FAR": str(home / "far")} if replayed else {}
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        *loaded,
        "-p",
        "no:randomly",
        "-p",
        "no:gpu_cluster",
        *args,
    ]
    return subprocess.run(
        command,
        cwd=home / "project" / scenario.cwd,
        env=env,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def normal(text: str, home: Path) -> str:
    """Without what differs between any two runs: the place, times, addresses."""
    text = text.replace(str(home), "HOME").replace("python -m pytest", "pytest")
    text = re.sub(r"HOME/far/gw\d+/basetemp|/tmp/pytest-of-\w+/pytest-\d+", "BASETEMP", text)
    text = re.sub(r" *\b\d+\.\d+[mu]?s\b( \(\d+:\d+:\d+\))?", " N s", text)
    text = re.sub(r"=+ (.*in N s.*?) =+", r"= \1 =", text)
    text = re.sub(r'(time|timestamp|hostname)="[^"]*"', r"\1=", text)
    text = re.sub(r"cache from \d+:\d\d:\d\d ago", "cache from T ago", text)
    text = re.sub(
        r"(?<=\n)platform .*?\n(?=\S*collect|\n)",
        lambda m: "\n".join(sorted(m[0].splitlines())) + "\n",
        text,
        flags=re.DOTALL,
    )
    text = re.sub(r"0x[0-9a-f]{6,}", "0xADDR", text)
    text = re.sub(r"^([-=!_])\1+ (.*HOME.*) \1+$", r"\1 \2 \1", text, flags=re.MULTILINE)
    return re.sub(r" +(\[ *\d+%\])", r" \1", text)


# -- the throw-away plugin, loaded with `-p tests.replay_rig` --------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    if "RIG_FAR" in os.environ:
        from pytest_gpu_cluster.host import isolation

        isolation.thin_client(early_config, parser, args)


def pytest_configure(config: pytest.Config) -> None:
    if "RIG_FAR" in os.environ:
        from pytest_gpu_cluster.host import isolation

        isolation.configure(config)
        config.pluginmanager.register(Host(config), "rig_host")


class Host:
    """As the real plugin's: pulls events and hands them to the replay."""

    def __init__(self, config: pytest.Config) -> None:
        from pytest_gpu_cluster.host.replay import Replay

        self.replay = Replay(config)
        if "RIG_ALONE" in os.environ:
            print(f"RIG_PID={os.getpid()}")
        self.events: Iterator[Event] = Cluster(config, self.replay.facts()).events()

    def stream(self) -> Iterator[Event]:
        """Yield the events, without the first of the kind that RIG_CUT names.

        Each is a line of the file that RIG_EVENTS names.
        """
        for event in iter(lambda: next(self.events, None), None):
            if event.kind == os.environ.get("RIG_CUT"):
                del os.environ["RIG_CUT"]
                continue
            if "RIG_EVENTS" in os.environ:
                line = {
                    **event.to_message(),
                    "seq": event.seq,
                    "writer": event.writer,
                    "t": EPOCH + event.seq,
                }
                with Path(os.environ["RIG_EVENTS"]).open("a") as file:
                    file.write(json.dumps(line) + "\n")
            yield event

    def pytest_collection(self, session: pytest.Session) -> bool:
        self.replay.collect(self.stream(), session)
        return True

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.replay.run(self.stream(), session)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.events.close()  # type: ignore[attr-defined]
        self.replay.finish(session)


class Process:
    """A worker in a process of its own."""

    def __init__(self, spec: WorkerSpec, arrivals: Arrivals) -> None:
        self.name = spec.worker
        self.channel, far = socket.socketpair()
        self.queue: list[int] = []
        self.running: int | None = None
        self.when = "setup"
        self.finishing = False
        command = [
            sys.executable,
            "-c",
            f"from tests.replay_rig import worker; worker({far.fileno()})",
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with Path(spec.scratch + ".log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                pass_fds=[far.fileno()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
            )
        far.close()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(spec.to_json()).encode())
        self.process.stdin.close()
        threading.Thread(target=self.pump, args=(arrivals,), daemon=True).start()

    def pump(self, arrivals: Arrivals) -> None:
        """Bring what the process sends into the queue, and its end after that."""
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
    """Entry of the subprocess."""
    from pytest_gpu_cluster.worker.main import main

    spec = json.loads(sys.stdin.buffer.read())
    sys.path[:] = [path for path in sys.path if path != ""]
    code = main(spec, socket.socket(fileno=descriptor))
    sys.stdout.flush()
    os._exit(code)


class Cluster:
    """The least that an agent does.

    Select, hand out, count failures, make a dead worker its test's failure.
    """

    def __init__(self, config: pytest.Config, facts: Mapping[str, Any]) -> None:
        from pytest_gpu_cluster.session import tree_name

        self.far = Path(os.environ["RIG_FAR"])
        self.workers = int(os.environ["RIG_WORKERS"])
        self.arrivals: Arrivals = queue.Queue()
        self.seq = 0
        origin = config.rootpath
        self.root = self.far / "tree" / tree_name(origin, config.invocation_params.dir)
        shutil.rmtree(self.far, ignore_errors=True)
        self.root.parent.mkdir(parents=True)
        shutil.copytree(origin, self.root, symlinks=True)
        self.spec = WorkerSpec(
            role=Role.SELECT,
            worker="main",
            scratch=str(self.far / "main"),
            root=str(self.root),
            origin=str(origin),
            cwd=str(self.root / os.path.relpath(config.invocation_params.dir, origin)),
            args=tuple(without_rig(config.invocation_params.args)),
            env={k: v for k, v in os.environ.items() if not k.startswith("RIG_")},
            workers=self.workers,
            testrun="run1",
            cluster=ClusterFacts(id="rig", session="run1", nodes=1, store="", prefix=""),
            gpus=(),
            ray=None,
            crashed_files={},
            quarantined=(),
            **facts,
        )
        self.tests: Sequence[ItemRow] = []
        self.pending: list[int] = []
        self.processes: list[Process] = []
        self.stopping = False
        self.failures = 0
        self.maxfail = 0
        self.records: list[Sequence[TestRecord]] = []

    def process(self, role: Role, name: str) -> Process:
        self.far.mkdir(parents=True, exist_ok=True)
        spec = replace(self.spec, role=role, worker=name, scratch=str(self.far / name))
        return Process(spec, self.arrivals)

    def event(self, event: Event) -> Event:
        """Return the event as a journal's reader has it."""
        self.seq += 1
        entry = {**event.to_message(), "v": 1, "seq": self.seq, "writer": "agent"}
        return Event.of(json.loads(json.dumps(entry)))

    def events(self) -> Iterator[Event]:
        self.selector: Process | None = self.process(Role.SELECT, "main")
        collected = False
        end: Done | None = None
        try:
            while self.selector is not None:
                source, message = self.arrivals.get(timeout=40)
                if source is not self.selector:
                    yield from self.on_worker(source, message)
                elif isinstance(message, Exit):
                    self.selector = None
                elif isinstance(message, Done):
                    end = message
                elif isinstance(message, Event):
                    yield self.event(message)
                    if isinstance(message, Collected):
                        self.on_collected(message)
                        collected = True
                waiting = self.pending or self.processes
                if collected and not waiting and self.selector and end is None:
                    collected = False
                    self.finish(self.selector)
            yield self.event(
                SessionFinished(
                    pytest_status=end.exitstatus if end else None,
                    shouldfail=end.shouldfail if end else None,
                    shouldstop=end.shouldstop if end else None,
                )
            )
        finally:
            for process in [*self.processes, *([self.selector] if self.selector else [])]:
                process.process.kill()
                process.process.wait()

    def finish(self, selector: Process) -> None:
        """Let the selecting process see all reports, and end."""
        limit = self.maxfail and self.failures >= self.maxfail
        selector.send(ShowReports(tests=self.records))
        selector.send(
            FinishSession(
                shouldfail=f"stopping after {self.failures} failures" if limit else "",
                testsfailed=self.failures,
            )
        )

    def on_collected(self, message: Collected) -> None:
        self.tests = message.items
        self.maxfail = message.options.maxfail
        if message.run and self.tests:
            self.pending = list(range(len(self.tests)))
            self.processes = [
                self.process(Role.RUN, f"gw{number}") for number in range(self.workers)
            ]

    def on_worker(self, process: Process, message: Message) -> Iterator[Event]:
        match message:
            case Ready():
                self.feed(process)
            case Started(nodeid=nodeid):
                process.running, process.when = process.queue[0], "setup"
                yield self.event(TestStarted(nodeid=nodeid, worker=process.name, attempt=0))
            case PhaseStarted(when=when):
                process.when = when
            case Finished(records=records):
                index = process.queue.pop(0)
                process.running = None
                yield from self.commit(index, records, process)
                self.feed(process)
            case LateRecords(records=records):
                yield self.event(replace(message, worker=process.name))
                self.failures += failures(records)
            case Output():
                yield self.event(replace(message, worker=process.name))
            case Interrupted() | InternalError():
                yield self.event(replace(message, worker=process.name))
                self.stop()
            case Exit(status=status):
                self.processes.remove(process)
                if process.queue and not self.stopping:
                    yield from self.on_crash(process, status or 0)

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
            self.processes.append(self.process(Role.RUN, f"{process.name}b"))

    def commit(
        self,
        index: int,
        records: Sequence[TestRecord],
        process: Process,
        failure_class: FailureClass | None = None,
    ) -> Iterator[Event]:
        if self.stopping:
            return
        yield self.event(
            TestFinished(
                nodeid=self.tests[index]["nodeid"],
                index=index,
                worker=process.name,
                records=records,
                failure_class=failure_class,
            )
        )
        self.records.append(records)
        self.failures += failures(records)
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
        counts: dict[str, int] = {}
        orders = []
        for index in process.queue:
            nodeid, outside = self.tests[index]["nodeid"], self.tests[index]["outside"]
            occurrence = counts.setdefault(nodeid, 0)
            orders.append(
                TestOrder(nodeid=nodeid, occurrence=occurrence, outside=tuple(outside or ()))
            )
            counts[nodeid] += 1
        process.send(RunTests(tests=tuple(orders), last=self.workers == 1))


def failures(records: Iterable[TestRecord]) -> int:
    return sum(
        record["kind"] == "report" and record["report"]["outcome"] == "failed" for record in records
    )


def without_rig(args: tuple[str | os.PathLike[str], ...]) -> Iterator[str]:
    """Return the arguments without the plugin itself."""
    waiting = (os.fspath(arg) for arg in args)
    for arg in waiting:
        if arg == "-p" and (name := next(waiting)) == "tests.replay_rig":
            continue
        yield from (arg, name) if arg == "-p" else (arg,)
