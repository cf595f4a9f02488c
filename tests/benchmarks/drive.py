"""What the figures are measured with: real processes, their output stamped as it arrives, and peers
to compare with.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RUN_LIMIT_S = 600.0
RAY_START_LIMIT_S = 120.0
PASSED = re.compile(r"^(\S+::.+?) PASSED")  # a line of pytest -v; it may still lack its end
DOWN = "import sys; from pytest_gpu_cluster.cli import main; sys.exit(main(['down']))"


class BenchError(Exception):
    """A run that was to be measured did not do what it was started for."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pytest process: when it began (unix seconds), how long it took, when each result was
    printed.
    """

    began: float
    wall_s: float
    seen: Mapping[str, float]  # node id -> unix seconds; filled with -v only
    peak_mib: float
    agent_peak_mib: float  # 0 when there was no agent

    @property
    def first_s(self) -> float:
        """Seconds from the start of the process to its first result on the terminal."""
        return min(self.seen.values()) - self.began


@dataclass
class Stamps:
    """The first moment at which each passed test was seen in a stream of text."""

    seen: dict[str, float] = field(default_factory=dict)
    line: str = ""

    def feed(self, text: str, at: float) -> None:
        """`text` arrived at `at`; a result counts as soon as its word is there, before the line
        ends.
        """
        *whole, self.line = (self.line + text).split("\n")
        for line in (*whole, self.line):
            if found := PASSED.match(line):
                self.seen.setdefault(found[1], at)


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where one section of figures is measured: a scratch folder and the environment of its
    processes.
    """

    scratch: Path
    env: Mapping[str, str]

    def project(self, name: str, tests: str, settings: str = "") -> Path:
        """A project with one test file `test_<name>.py`, a store of its own and `settings` in
        [tool.gpu-cluster].
        """
        folder = self.scratch / name
        folder.mkdir()
        (folder / "pyproject.toml").write_text(
            f"[tool.pytest.ini_options]\n[tool.gpu-cluster]\n{settings}\n"
        )
        (folder / f"test_{name}.py").write_text(tests)
        return folder

    def store(self, project: Path) -> str:
        return self.env.get("GPU_CLUSTER_STORE") or str(project.parent / f"{project.name}.store")

    def pytest(self, project: Path, *options: str) -> Run:
        """Run pytest in `project`.

        Raises BenchError with the end of its output when it does not exit 0.
        """
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:randomly",
            *("-p", "no:allure_pytest", "-p", "no:benchmark", "-p", "no:syrupy"),
            "-p",
            "no:cacheprovider",
            *options,
        ]
        env = {**self.env, "GPU_CLUSTER_STORE": self.store(project)}
        began = time.time()
        process = subprocess.Popen(
            command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        watch = AgentWatch(since=began) if "--gpu-cluster" in options else None
        output, stamps = read_stamped(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # already waited for
        wall = time.time() - began
        if process.returncode != 0:
            raise BenchError(
                f"{' '.join(command[2:])} in {project} exited {process.returncode}:"
                f"\n{output[-3000:]}"
            )
        return Run(
            began=began,
            wall_s=wall,
            seen=stamps.seen,
            peak_mib=usage.ru_maxrss / 1024,
            agent_peak_mib=watch.stop() if watch else 0.0,
        )

    def down(self, project: Path) -> None:
        """End the clusters of the project's store, if there is one yet."""
        if "://" not in self.store(project) and not Path(self.store(project)).exists():
            return
        env = {**self.env, "GPU_CLUSTER_STORE": self.store(project)}
        command = [sys.executable, "-c", DOWN]
        done = subprocess.run(
            command, cwd=project, env=env, text=True, capture_output=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise BenchError(
                f"gpu-cluster down in {project} exited {done.returncode}:"
                f"\n{done.stdout}{done.stderr}"
            )

    @contextlib.contextmanager
    def cluster_of(self, project: Path) -> Iterator[Path]:
        """The project; whatever happens, its clusters are ended after the block."""
        try:
            yield project
        finally:
            self.down(project)

    def ray_start_s(self) -> float:
        """Seconds that a bare `ray start --head` takes here, to the line that says so; it is ended
        again by pid.

        Its port, token and directory are its own, everything else is Ray's default.
        """
        folder = Path(
            tempfile.mkdtemp(prefix="bray-", dir="/tmp")
        )  # short: a socket's path holds 107 bytes
        client, dashboard, listen, grpc, runtime = free_ports(5)
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--block",
            "--port=0",
        ]
        command += [
            f"--temp-dir={folder}",
            f"--ray-client-server-port={client}",
            f"--dashboard-port={dashboard}",
        ]
        command += [
            f"--dashboard-agent-listen-port={listen}",
            f"--dashboard-agent-grpc-port={grpc}",
        ]
        command += [f"--runtime-env-agent-port={runtime}", "--disable-usage-stats"]
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        began = time.time()
        process = subprocess.Popen(
            command,
            env={**self.env, **token},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return wait_for(process, "Ray runtime started", RAY_START_LIMIT_S) - began
        finally:
            end_tree(process)
            shutil.rmtree(folder, ignore_errors=True)


def read_stamped(process: subprocess.Popen[bytes]) -> tuple[str, Stamps]:
    """Everything the process says, and when its results came. Ends it after RUN_LIMIT_S."""
    assert process.stdout is not None
    stamps, text = Stamps(), []
    limit = threading.Timer(RUN_LIMIT_S, process.terminate)
    limit.start()
    try:
        while chunk := os.read(process.stdout.fileno(), 65536):
            text.append(chunk.decode(errors="replace"))
            stamps.feed(text[-1], time.time())
    finally:
        limit.cancel()
        process.stdout.close()
    return "".join(text), stamps


def wait_for(process: subprocess.Popen[bytes], words: str, limit_s: float) -> float:
    """Unix seconds at which `words` appeared in the output.

    Raises BenchError when it ends or takes too long.
    """
    assert process.stdout is not None
    said = ""
    limit = threading.Timer(limit_s, process.kill)
    limit.start()
    try:
        while words not in said:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                raise BenchError(
                    f"{process.args!r} ended, or took over {limit_s:g} s; it said:\n{said[-2000:]}"
                )
            said += chunk.decode(errors="replace")
        return time.time()
    finally:
        limit.cancel()


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything below it, each by its pid."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for each in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class AgentWatch:
    """Peak memory of the agent of the session that begins now: the first process forked for a
    session.
    """

    def __init__(self, *, since: float) -> None:
        self.since, self.peak_mib, self.pid = since, 0.0, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self) -> None:
        while not self.over.wait(0.5):
            self.pid = self.pid or self.find()
            with contextlib.suppress(OSError, ValueError, IndexError):
                status = Path(f"/proc/{self.pid}/status").read_text()
                self.peak_mib = max(self.peak_mib, int(status.split("VmHWM:")[1].split()[0]) / 1024)

    def find(self) -> int:
        """The oldest process named gpu-worker that began after the session; 0 when there is none
        yet.
        """
        found = [
            p
            for p in psutil.process_iter(["name", "create_time"])
            if p.info["name"] == "gpu-worker"
        ]
        young = [p for p in found if p.info["create_time"] >= self.since]
        return int(min(young, key=lambda p: p.info["create_time"]).pid) if young else 0

    def stop(self) -> float:
        self.over.set()
        self.thread.join()
        return self.peak_mib


def test_properties(junit: Path) -> dict[str, dict[str, str]]:
    """What record_property wrote: name of the test -> name -> value."""
    cases = ET.parse(junit).getroot().iter("testcase")
    return {
        c.get("name", ""): {p.get("name", ""): p.get("value", "") for p in c.iter("property")}
        for c in cases
    }
