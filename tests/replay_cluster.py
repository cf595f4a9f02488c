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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Process:
    """A worker in a process of its own."""

    def __init__(
        self, name: str, spec: dict[str, Any], messages: queue.Queue[tuple[Any, dict[str, Any]]]
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
            f"from tests.replay_cluster import worker; worker({far.fileno()})",
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
        threading.Thread(target=self.pump, args=(messages,), daemon=True).start()

    def pump(self, messages: queue.Queue[tuple[Any, dict[str, Any]]]) -> None:
        from pytest_gpu_cluster.contract.codec import decode_line

        with contextlib.suppress(ConnectionResetError), self.channel.makefile("rb") as lines:
            for line in lines:
                messages.put((self, decode_line(line)))
        self.channel.close()
        messages.put((self, {"kind": "exit", "status": self.process.wait()}))

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
    """The least that an agent does: select, hand out, count failures, make a dead worker its test's
    failure.
    """

    def __init__(self, config: pytest.Config, facts: dict[str, Any]) -> None:
        from pytest_gpu_cluster.session import tree_name

        self.far = Path(os.environ["RIG_FAR"])
        self.workers = int(os.environ["RIG_WORKERS"])
        self.messages: queue.Queue[tuple[Any, dict[str, Any]]] = queue.Queue()
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
            "args": list(own_arguments(config.invocation_params.args)),
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
            self.messages,
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
        ending: dict[str, Any] = {}
        try:
            while self.selector is not None:
                source, message = self.messages.get(timeout=40)
                if source is self.selector:
                    if message["kind"] == "exit":
                        self.selector = None
                    elif message["kind"] == "done":
                        ending = message
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
                    and not ending
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
            fields = {name: ending.get(name) for name in ("exitstatus", "shouldfail", "shouldstop")}
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
        occurrences: dict[str, int] = {}
        tests = []
        for index in process.queue:
            nodeid = self.tests[index]["nodeid"]
            tests.append(
                {
                    "nodeid": nodeid,
                    "attempt": 0,
                    "occurrence": occurrences.get(nodeid, 0),
                    "outside": self.tests[index]["outside"],
                }
            )
            occurrences[nodeid] = occurrences.get(nodeid, 0) + 1
        process.send(run=tests, last=self.workers == 1)


def failures(records: list[Any]) -> int:
    return sum(
        record["kind"] == "report" and record["report"]["outcome"] == "failed" for record in records
    )


def own_arguments(args: tuple[str, ...]) -> Iterator[str]:
    """The arguments without the plugin itself."""
    waiting = iter(args)
    for arg in waiting:
        if arg == "-p" and (name := next(waiting)) == "tests.replay_rig":
            continue
        yield from (arg, name) if arg == "-p" else (arg,)
