"""Kill each part of a run at three points and count what is left (`make faults`).

Every row is a real `pytest --gpu-cluster` in a project of its own. A fault is injected while the cluster starts, in the middle of
the tests, and after the last one. Then: which results were kept, which were lost without being named, and what is still there of
processes, listening ports, shared memory and files. Writes `faults.json`, and the table in `docs/faults.md` from it; with --only
or --point the other rows stay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = 12
SUITE = f"""
import time, pytest
@pytest.mark.parametrize("n", range({TESTS}))
def test_sleep(n):
    time.sleep(0.4)
"""
POINTS = ("starting", "running", "ending")
DISK_BYTES = 4 << 20  # of the store whose disk is filled: a tmpfs, so that row needs root
RECORD_PATIENCE_S = 12.0
PATIENCE_S = 75.0  # the heartbeat's grace of 45 s, and time to end


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row: what was killed when, what pytest said, what is left of the cluster."""

    fault: str
    point: str
    exit_code: int | None  # of pytest; None: it was the victim
    finished: int  # tests whose result the client or the record has
    lost: int  # tests without a result and without being named as an error
    processes: int
    ports: int
    shared_memory: int
    files: int
    gone_after_s: float  # from the fault until nothing was left
    record: str  # who closed the record


def table() -> dict[str, Callable[[Run], None]]:
    return {
        "SIGINT once": lambda run: run.send(signal.SIGINT),
        "SIGINT twice": interrupt_twice,
        "SIGTERM": lambda run: run.send(signal.SIGTERM),
        "SIGHUP": lambda run: run.send(signal.SIGHUP),
        "client SIGKILL": lambda run: run.send(signal.SIGKILL),
        "keeper SIGKILL": lambda run: kill(run.keeper()),
        "guard SIGKILL": lambda run: kill(run.guard()),
        "agent SIGKILL": lambda run: kill(run.agent()),
        "raylet SIGKILL": lambda run: kill(run.named("raylet/raylet")),
        "Ray head SIGKILL": lambda run: kill(run.named("gcs_server")),
        "client and keeper SIGKILL": kill_both,
        "disk full": lambda run: run.fill_disk(),
        "store gone": lambda run: run.lose_store(),
    }


def interrupt_twice(run: Run) -> None:
    run.send(signal.SIGINT)
    time.sleep(0.3)
    run.send(signal.SIGINT)


def kill_both(run: Run) -> None:
    kill(run.keeper())
    run.send(signal.SIGKILL)


def kill(pid: int | None) -> None:
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def processes() -> Iterator[tuple[int, int, str, bytes]]:
    """Pid, parent, command line and environment of every process that can be read."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
                line = (
                    Path(f"/proc/{name}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                )
                yield int(name), parent, line, Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue


class Run:
    """One pytest under fault, with a store of its own, and how to find the parts of its cluster."""

    def __init__(self, project: Path, *, small_disk: bool) -> None:
        self.project, self.store = project, project / ".gpu-cluster"
        self.small_disk = small_disk
        if small_disk:
            self.store.mkdir()
            subprocess.run(
                [
                    "mount",
                    "-t",
                    "tmpfs",
                    "-o",
                    f"size={DISK_BYTES},mode=0700",
                    "tmpfs",
                    str(self.store),
                ],
                check=True,
            )
        (project / "test_sleep.py").write_text(SUITE)
        (project / "pyproject.toml").write_text(
            "[tool.pytest.ini_options]\n[tool.gpu-cluster]\nidle-minutes = 0\n"
        )
        self.shm = set(os.listdir("/dev/shm"))
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "--gpu-cluster",
            "-v",
            "-p",
            "no:randomly",
            "--junitxml=junit.xml",
        ]
        environment = {
            k: v
            for k, v in os.environ.items()
            if k not in ("CI",) and not k.startswith("GPU_CLUSTER_")
        }
        self.output = open(project / "out.txt", "w")  # noqa: SIM115 - the child's stdout
        self.client = subprocess.Popen(
            argv,
            cwd=project,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def said(self) -> str:
        return (self.project / "out.txt").read_text()

    def wait_for(self, point: str) -> None:
        """Until the run has reached the point of injection."""
        reached: Callable[[], bool] = {
            "starting": lambda: (
                self.guard() is not None and self.named("raylet/raylet") is not None
            ),
            "running": lambda: self.said().count("PASSED") >= TESTS // 3,
            "ending": lambda: self.said().count("PASSED") >= TESTS,
        }[point]
        deadline = time.monotonic() + 60
        while not reached():
            if time.monotonic() > deadline or self.client.poll() is not None:
                return  # a run that is over before the point came is still counted
            time.sleep(0.005)

    def cluster(self) -> str:
        """The directory of this run's cluster, as its guard's command line names it."""
        match = re.search(r"cluster +(c[0-9a-f]{6})", self.said())
        return f"/tmp/gpu-cluster-{os.getuid()}/{match[1]}/" if match else "/nonexistent/"

    def guards(self) -> list[tuple[int, int]]:
        return [
            (pid, parent)
            for pid, parent, line, _ in processes()
            if "pytest_gpu_cluster.node.guard" in line and self.cluster() in line
        ]

    def guard(self) -> int | None:
        pids = {pid for pid, _ in self.guards()}
        return next((pid for pid, parent in self.guards() if parent not in pids), None)

    def keeper(self) -> int | None:
        return next((pid for pid, parent in self.guards() if parent == self.guard()), None)

    def agent(self) -> int | None:
        """The oldest of the forked processes."""
        ours = [
            pid
            for pid in self.alive()
            if Path(f"/proc/{pid}/comm").read_text().strip() == "gpu-worker"
        ]
        return min(ours, default=None)

    def named(self, part: str) -> int | None:
        return next(
            (
                pid
                for pid, _, line, environ in processes()
                if part in line and self.cluster().encode() in environ
            ),
            None,
        )

    def alive(self) -> list[int]:
        mark = self.cluster().encode()
        return [
            pid for pid, _, line, environ in processes() if mark in environ or mark.decode() in line
        ]

    def send(self, number: int) -> None:
        self.client.send_signal(number)

    def lose_store(self) -> None:
        """Away, with a file in its place, as a disk that was unmounted."""
        self.store.rename(self.project / "moved")
        self.store.write_text("no store here any more")

    def fill_disk(self) -> None:
        """Not a byte is left for the store."""
        with contextlib.suppress(OSError), open(self.store / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def close(self) -> None:
        self.output.close()
        if self.small_disk:
            subprocess.run(["umount", str(self.store)], check=True)

    def ports(self) -> int:
        """Listening sockets held by processes of the cluster."""
        inodes = set()
        for pid in self.alive():
            try:
                inodes |= {
                    os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
                }
            except OSError:
                continue
        rows = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        return sum(row[3] == "0A" and f"socket:[{row[9]}]" in inodes for row in rows)

    def left(self) -> dict[str, int]:
        directory = Path(self.cluster())
        files = sum(len(names) for _, _, names in os.walk(directory)) + directory.is_dir()
        return {
            "processes": len(self.alive()),
            "ports": self.ports(),
            "shared_memory": len(set(os.listdir("/dev/shm")) - self.shm),
            "files": files,
        }

    def results(self) -> tuple[int, int]:
        """Tests with a result (in the JUnit file or the record), and tests that nobody names."""
        named: set[str | None] = set()
        junit = self.project / "junit.xml"
        if junit.exists():
            named = {case.get("name") for case in ET.parse(junit).iter("testcase")}
        for store in (self.store, self.project / "moved"):
            if store.is_dir():
                from pytest_gpu_cluster.contract.journal_reader import JournalReader
                from pytest_gpu_cluster.contract.store import Store

                opened = Store.open(str(store), base=self.project)
                for session in {key.split("/")[1] for key in opened.list("sessions/")}:
                    events = JournalReader(opened, f"sessions/{session}/events").poll()
                    named |= {
                        event["nodeid"].rpartition("::")[2]
                        for event in events
                        if event["kind"] == "test_finished"
                    }
        return len(named), TESTS - len(named)

    def record(self) -> str:
        for path in [*self.project.glob("*/sessions/*/result.json")]:
            return str(json.loads(path.read_bytes())["closed_by"])
        return "open"


def inject(fault: str, act: Callable[[Run], None], point: str) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        run = Run(Path(directory), small_disk=fault == "disk full")
        run.wait_for(point)
        began = time.monotonic()
        act(run)
        while any(run.left().values()) and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.1)
        gone_after_s = time.monotonic() - began
        try:
            code: int | None = run.client.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            run.client.kill()
            code = 124
        finished, lost = run.results()
        killed = "client" in fault
        deadline = (
            time.monotonic() + RECORD_PATIENCE_S
        )  # whoever finds client and keeper gone looks twice at the heartbeat
        while run.record() == "open" and time.monotonic() < deadline:
            time.sleep(0.1)
        outcome = Outcome(
            fault=fault,
            point=point,
            exit_code=None if killed else code,
            finished=finished,
            lost=lost,
            gone_after_s=round(gone_after_s, 1),
            record=run.record(),
            **run.left(),
        )
        run.close()
        return outcome


def write_table(rows: list[Outcome], path: Path) -> None:
    head = "| fault | at | exit | tests with a result | left: processes | ports | shared memory | files | gone after (s) | record closed by |"
    lines = [head, "|" + "---|" * 10]
    for row in rows:
        code = "–" if row.exit_code is None else row.exit_code
        cells = (
            row.fault,
            row.point,
            code,
            f"{row.finished} of {TESTS}",
            row.processes,
            row.ports,
            row.shared_memory,
            row.files,
            row.gone_after_s,
            row.record,
        )
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    text = path.read_text()
    path.write_text(
        re.sub(
            r"(<!-- faults:begin -->\n).*?(<!-- faults:end -->)",
            lambda m: m[1] + "\n".join(lines) + "\n" + m[2],
            text,
            flags=re.S,
        )
    )


def save(rows: list[Outcome]) -> None:
    """Into faults.json and the table; what was not run now stays as it was."""
    path = ROOT / "faults.json"
    before = [Outcome(**row) for row in json.loads(path.read_text())] if path.exists() else []
    known = {(row.fault, row.point): row for row in (*before, *rows)}
    ordered = [
        known[fault, point] for fault in table() for point in POINTS if (fault, point) in known
    ]
    path.write_text(json.dumps([asdict(row) for row in ordered], indent=1) + "\n")
    write_table(ordered, ROOT / "docs" / "faults.md")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", help="a part of a fault's name")
    parser.add_argument("--point", choices=POINTS)
    chosen = parser.parse_args()
    rows = []
    for fault, act in table().items():
        for point in POINTS:
            if (chosen.only and chosen.only not in fault) or (
                chosen.point and chosen.point != point
            ):
                continue
            rows.append(inject(fault, act, point))
            print(json.dumps(asdict(rows[-1])), flush=True)
    save(rows)
    return int(any(row.processes or row.ports or row.shared_memory or row.files for row in rows))


if __name__ == "__main__":
    sys.exit(main())
