"""Replay without a cluster: real workers as plain subprocesses, a trivial scheduler, and a throw-away plugin.

`compare(scenario, tmp_path)` runs plain pytest and the replayed pytest on the same files and returns both outcomes, normalised, so
that a test can say they are equal. The shipped tree lies at another absolute path, as on a real node.
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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 1_700_000_000.0  # unix seconds: the first event is written a second later, and every second one more


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
    """Plain and replayed outcome of a scenario, each in a directory of its own with the same name."""
    return run(scenario, tmp_path / "plain", replayed=False), run(
        scenario, tmp_path / "replayed", replayed=True
    )


def run(scenario: Scenario, home: Path, *, replayed: bool) -> Outcome:
    """One side of a scenario."""
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


# -- the throw-away plugin, loaded with `-p tests.replay_rig` -------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    if "RIG_FAR" in os.environ:
        from pytest_gpu_cluster.host import isolation

        isolation.ignore_user_code(early_config, parser, args)


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
        self.events: Iterator[Any] = Cluster(config, self.replay.facts()).events()

    def stream(self) -> Iterator[Any]:
        """The events, without the first of the kind that RIG_CUT names; each is a line of the file that RIG_EVENTS names."""
        for event in iter(lambda: next(self.events, None), None):
            if event.kind == os.environ.get("RIG_CUT"):
                del os.environ["RIG_CUT"]
                continue
            if "RIG_EVENTS" in os.environ:
                line = {
                    "kind": event.kind,
                    "data": event.data,
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

    def __init__(
        self, name: str, spec: dict[str, Any], heard: queue.Queue[tuple[Any, dict[str, Any]]]
    ) -> None:
        self.name = name
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
        with Path(spec["scratch"] + ".log").open("wb") as log:
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
        self.process.stdin.write(json.dumps(spec).encode())
        self.process.stdin.close()
        threading.Thread(target=self.pump, args=(heard,), daemon=True).start()

    def pump(self, heard: queue.Queue[tuple[Any, dict[str, Any]]]) -> None:
        from pytest_gpu_cluster.contract.codec import decode_line

        with contextlib.suppress(ConnectionResetError), self.channel.makefile("rb") as lines:
            for line in lines:
                heard.put((self, decode_line(line)))
        self.channel.close()
        heard.put((self, {"kind": "exit", "status": self.process.wait()}))

    def send(self, **message: Any) -> None:
        from pytest_gpu_cluster.contract.codec import encode_line

        with contextlib.suppress(OSError):
            self.channel.sendall(encode_line(message))


def worker(descriptor: int) -> None:
    """Entry of the subprocess."""
    from pytest_gpu_cluster.worker.main import main

    spec = json.loads(sys.stdin.buffer.read())
    sys.path[:] = [path for path in sys.path if path != ""]
    code = main(spec, socket.socket(fileno=descriptor))
    sys.stdout.flush()
    os._exit(code)


class Cluster:
    """The least that an agent does: select, hand out, count failures, make a dead worker its test's failure."""

    def __init__(self, config: pytest.Config, facts: dict[str, Any]) -> None:
        from pytest_gpu_cluster.session import tree_name

        self.far = Path(os.environ["RIG_FAR"])
        self.workers = int(os.environ["RIG_WORKERS"])
        self.heard: queue.Queue[tuple[Any, dict[str, Any]]] = queue.Queue()
        self.seq = 0
        origin = config.rootpath
        self.root = self.far / "tree" / tree_name(origin, config.invocation_params.dir)
        shutil.rmtree(self.far, ignore_errors=True)
        self.root.parent.mkdir(parents=True)
        shutil.copytree(origin, self.root, symlinks=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("RIG_")}
        self.spec = {
            "root": str(self.root),
            "origin": str(origin),
            "cwd": str(self.root / os.path.relpath(config.invocation_params.dir, origin)),
            "args": list(own(config.invocation_params.args)),
            "env": env,
            "workers": self.workers,
            "testrun": "run1",
            "cluster": {},
            "gpus": [],
            "ray": None,
            **facts,
        }
        self.tests: list[dict[str, Any]] = []
        self.pending: list[int] = []
        self.processes: list[Process] = []
        self.stopping = False
        self.failures = 0
        self.maxfail = 0
        self.records: list[Any] = []

    def process(self, role: str, name: str) -> Process:
        self.far.mkdir(parents=True, exist_ok=True)
        return Process(
            name,
            {**self.spec, "role": role, "worker": name, "scratch": str(self.far / name)},
            self.heard,
        )

    def event(self, kind: str, **data: Any) -> Any:
        from pytest_gpu_cluster.contract.codec import Event

        self.seq += 1
        data = json.loads(json.dumps(data))
        data.pop("kind", None)
        return Event.of({**data, "kind": kind, "v": 1, "seq": self.seq, "writer": "agent"})

    def events(self) -> Iterator[Any]:
        self.selector: Process | None = self.process("select", "main")
        collected = False
        done: dict[str, Any] = {}
        try:
            while self.selector is not None:
                source, message = self.heard.get(timeout=40)
                if source is self.selector:
                    if message["kind"] == "exit":
                        self.selector = None
                    elif message["kind"] == "done":
                        done = message
                    elif message["kind"] not in ("collecting", "ready", "capture_fds"):
                        yield self.event(**message)
                    if message["kind"] == "collected":
                        self.collected(message)
                        collected = True
                else:
                    yield from self.hear(source, message)
                if (
                    collected
                    and not self.pending
                    and not self.processes
                    and self.selector
                    and not done
                ):
                    collected = False
                    failed = (
                        f"stopping after {self.failures} failures"
                        if self.maxfail and self.failures >= self.maxfail
                        else ""
                    )
                    self.selector.send(reports=self.records)
                    self.selector.send(
                        finish={
                            "shouldfail": failed,
                            "shouldstop": "",
                            "testsfailed": self.failures,
                        }
                    )
            fields = {name: done.get(name) for name in ("exitstatus", "shouldfail", "shouldstop")}
            yield self.event("session_finished", **fields, failure_class=None, message="")
        finally:
            for process in [*self.processes, *([self.selector] if self.selector else [])]:
                process.process.kill()
                process.process.wait()

    def collected(self, message: dict[str, Any]) -> None:
        self.tests = message["items"]
        self.maxfail = message["options"]["maxfail"] or 0
        if message["run"] and self.tests:
            self.pending = list(range(len(self.tests)))
            self.processes = [self.process("run", f"gw{number}") for number in range(self.workers)]

    def hear(self, process: Process, message: dict[str, Any]) -> Iterator[Any]:
        kind = message["kind"]
        if kind == "ready":
            self.feed(process)
        elif kind == "started":
            process.running, process.when = process.queue[0], "setup"
            yield self.event(
                "test_started",
                nodeid=message["nodeid"],
                index=process.running,
                attempt=0,
                worker=process.name,
            )
        elif kind == "phase":
            process.when = message["when"]
        elif kind == "finished":
            index = process.queue.pop(0)
            process.running = None
            yield from self.commit(index, message["records"], process, None)
            self.feed(process)
        elif kind in ("late", "output", "interrupted", "internal_error"):
            yield self.event(**{**message, "worker": process.name})
            if kind == "late":
                self.failures += failures(message["records"])
            if kind in ("interrupted", "internal_error"):
                self.stop()
        elif kind == "exit":
            self.processes.remove(process)
            if process.queue and not self.stopping:
                yield from self.crashed(process, message["status"])

    def crashed(self, process: Process, status: int) -> Iterator[Any]:
        from pytest_gpu_cluster.contract.codec import crash_records

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
        yield from self.commit(index, records, process, "crash")
        self.pending[:0] = process.queue
        if self.pending and not self.stopping:
            self.processes.append(self.process("run", f"{process.name}b"))

    def commit(
        self, index: int, records: list[Any], process: Process, class_: str | None
    ) -> Iterator[Any]:
        if self.stopping:
            return
        nodeid = self.tests[index]["nodeid"]
        yield self.event(
            "test_finished",
            nodeid=nodeid,
            index=index,
            attempt=0,
            worker=process.name,
            records=records,
            duration_s=0.0,
            failure_class=class_,
        )
        self.records.append(records)
        self.failures += failures(records)
        if self.maxfail and self.failures >= self.maxfail:
            self.stop()

    def stop(self) -> None:
        self.stopping, self.pending = True, []
        for process in self.processes:
            if process.running is not None:
                process.send(stop={})
                process.process.send_signal(signal.SIGINT)
            process.send(finish={})

    def feed(self, process: Process) -> None:
        if process.finishing or process.queue:
            return
        if not self.pending:
            process.finishing = True
            process.send(finish={})
            return
        count = len(self.pending) if self.workers == 1 else 1
        process.queue, self.pending = self.pending[:count], self.pending[count:]
        seen: dict[str, int] = {}
        told = []
        for index in process.queue:
            nodeid = self.tests[index]["nodeid"]
            told.append(
                {
                    "nodeid": nodeid,
                    "attempt": 0,
                    "occurrence": seen.get(nodeid, 0),
                    "outside": self.tests[index]["outside"],
                }
            )
            seen[nodeid] = seen.get(nodeid, 0) + 1
        process.send(run=told, last=self.workers == 1)


def failures(records: list[Any]) -> int:
    return sum(
        record["kind"] == "report" and record["report"]["outcome"] == "failed" for record in records
    )


def own(args: tuple[str, ...]) -> Iterator[str]:
    """The arguments without the plugin itself."""
    waiting = iter(args)
    for arg in waiting:
        if arg == "-p" and (name := next(waiting)) == "tests.replay_rig":
            continue
        yield from (arg, name) if arg == "-p" else (arg,)
