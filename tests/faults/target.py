"""One pytest under fault: a run with a store of its own, and the parts of its cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.replay_rig import WITHOUT

TESTS = 12
SUITE = f"""
import time, pytest
@pytest.mark.parametrize("n", range({TESTS}))
def test_sleep(n):
    time.sleep(0.4)
"""
SETTINGS = "[tool.pytest.ini_options]\n[tool.gpu-cluster]\nidle-minutes = 0\n"
PYTEST = (sys.executable, "-m", "pytest", "--gpu-cluster", "-v", *WITHOUT)
DISK_BYTES = 4 << 20  # of the store whose disk is filled: a tmpfs, so that row needs root


class Process(NamedTuple):
    """A process that can be read: pid, parent, command line and environment."""

    pid: int
    parent: int
    line: str
    environ: bytes


class Remains(NamedTuple):
    """The remains of a cluster on this machine."""

    processes: int
    ports: int
    shared_memory: int
    files: int


def list_processes() -> Iterator[Process]:
    """Yield every process that can be read."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            folder = Path("/proc", name)
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                environ = (folder / "environ").read_bytes()
                yield Process(int(name), parent, line.decode(errors="replace"), environ)


class Run:
    """One pytest under fault, with a store of its own, and the parts of its cluster."""

    def __init__(self, project: Path, *, small_disk: bool) -> None:
        self.project, self.store = project, project / ".gpu-cluster"
        self.small_disk = small_disk
        if small_disk:
            self.store.mkdir()
            options = f"size={DISK_BYTES},mode=0700"
            mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.store)]
            subprocess.run(mount, check=True)
        (project / "test_sleep.py").write_text(SUITE)
        (project / "pyproject.toml").write_text(SETTINGS)
        self.shm = set(os.listdir("/dev/shm"))
        environ = {
            name: value
            for name, value in os.environ.items()
            if name != "CI" and not name.startswith("GPU_CLUSTER_")
        }
        self.output = open(project / "out.txt", "w")  # noqa: SIM115 - the child's stdout
        self.client = subprocess.Popen(
            [*PYTEST, "--junitxml=junit.xml"],
            cwd=project,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )

    def text(self) -> str:
        """Return the client's output so far."""
        return (self.project / "out.txt").read_text()

    def reached(self, point: str) -> bool:
        """Return True when the run has reached the point of injection."""
        if point == "starting":
            return self.guard() is not None and self.find("raylet/raylet") is not None
        return self.text().count("PASSED") >= (TESTS if point == "ending" else TESTS // 3)

    def wait_for(self, point: str) -> None:
        """Wait until the run has reached the point, or is over; it then counts all the same."""
        deadline = time.monotonic() + 60
        while not self.reached(point):
            if time.monotonic() > deadline or self.client.poll() is not None:
                return
            time.sleep(0.005)

    def cluster(self) -> str:
        """Return the directory of this run's cluster, as its guard's command line names it."""
        match = re.search(r"cluster +(c[0-9a-f]{6})", self.text())
        return f"/tmp/gpu-cluster-{os.getuid()}/{match[1]}/" if match else "/nonexistent/"

    def guards(self) -> list[Process]:
        """Return guard and keeper, which have the same command line."""
        return [
            process
            for process in list_processes()
            if "pytest_gpu_cluster.node.guard" in process.line and self.cluster() in process.line
        ]

    def guard(self) -> int | None:
        """Return the id of the guard, the keeper's parent."""
        pids = {process.pid for process in self.guards()}
        return next((each.pid for each in self.guards() if each.parent not in pids), None)

    def keeper(self) -> int | None:
        """Return the id of the keeper."""
        return next((each.pid for each in self.guards() if each.parent == self.guard()), None)

    def agent(self) -> int | None:
        """Return the id of the agent, the oldest of the forked processes."""
        forked = [
            pid
            for pid in self.living()
            if Path(f"/proc/{pid}/comm").read_text().strip() == "gpu-worker"
        ]
        return min(forked, default=None)

    def find(self, part: str) -> int | None:
        """Return the id of a process of the cluster whose command line has this part."""
        mark = self.cluster().encode()
        matches = (each for each in list_processes() if part in each.line and mark in each.environ)
        return next((process.pid for process in matches), None)

    def living(self) -> list[int]:
        """Return the ids of all processes of the cluster."""
        mark = self.cluster()
        return [
            process.pid
            for process in list_processes()
            if mark.encode() in process.environ or mark in process.line
        ]

    def send(self, number: int) -> None:
        """Send a signal to the client."""
        self.client.send_signal(number)

    def remove_store(self) -> None:
        """Put a file in the store's place, as when its disk is unmounted."""
        self.store.rename(self.project / "moved")
        self.store.write_text("no store here any more")

    def fill_disk(self) -> None:
        """Fill the store's disk to the last byte."""
        with contextlib.suppress(OSError), open(self.store / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def close(self) -> None:
        """Release the output and the disk."""
        self.output.close()
        if self.small_disk:
            subprocess.run(["umount", str(self.store)], check=True)

    def ports(self) -> int:
        """Return the number of listening sockets of the cluster's processes."""
        inodes = set()
        for pid in self.living():
            with contextlib.suppress(OSError):
                folder = Path(f"/proc/{pid}/fd")
                inodes |= {os.readlink(folder / name) for name in os.listdir(folder)}
        rows = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        return sum(row[3] == "0A" and f"socket:[{row[9]}]" in inodes for row in rows)

    def remains(self) -> Remains:
        """Count the remains of the cluster."""
        directory = Path(self.cluster())
        return Remains(
            processes=len(self.living()),
            ports=self.ports(),
            shared_memory=len(set(os.listdir("/dev/shm")) - self.shm),
            files=sum(len(names) for _, _, names in os.walk(directory)) + directory.is_dir(),
        )

    def results(self) -> set[str]:
        """Return the tests with a result, in the JUnit file or in the record."""
        names: set[str] = set()
        junit = self.project / "junit.xml"
        if junit.exists():
            names = {case.get("name", "") for case in ET.parse(junit).iter("testcase")}
        for store in (self.store, self.project / "moved"):
            if store.is_dir():
                names |= recorded_tests(store)
        return names

    def closed_by(self) -> str:
        """Return the process that closed the record; `open` when none did."""
        for path in self.project.glob("*/sessions/*/result.json"):
            return str(json.loads(path.read_bytes())["closed_by"])
        return "open"


def recorded_tests(folder: Path) -> set[str]:
    """Return the tests that the sessions of a store report as finished."""
    from pytest_gpu_cluster.contract.events import TestFinished
    from pytest_gpu_cluster.contract.record import SessionRecord, session_ids
    from pytest_gpu_cluster.contract.store import Store

    store = Store.open(str(folder), base=folder.parent)
    return {
        event.nodeid.rpartition("::")[2]
        for session in session_ids(store)
        for event in SessionRecord(store, session).reader().poll()
        if isinstance(event, TestFinished)
    }
