"""Real runs: `pytest --gpu-cluster` in projects of their own, on clusters that the tests of one run share where that is honest."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_gpu_cluster.contract.journal_reader import JournalReader
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.providers import ClusterRef, provider

LIMIT_S = 120
CLUSTERS = Path(f"/tmp/gpu-cluster-{os.getuid()}")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One finished pytest."""

    code: int
    out: str  # stdout and stderr as they came
    junit: Path

    @property
    def cluster(self) -> str:
        """The id of the cluster it ran on, as the terminal names it; empty when none was asked for."""
        found = re.search(r"gpu-cluster: cluster +(c[0-9a-f]{6})", self.out)
        return found[1] if found else ""

    @property
    def session(self) -> str:
        """The session's id, as the first and the last line give it."""
        found = re.search(r"gpu-cluster: session (\S+)", self.out)
        return found[1] if found else ""

    def case(self, name: str) -> ET.Element:
        """The one JUnit case of this name."""
        (case,) = [
            case for case in ET.parse(self.junit).iter("testcase") if case.get("name") == name
        ]
        return case

    def cases(self) -> dict[str, str]:
        """Outcome by test name: passed, failure, error or skipped. Each test stands there once."""
        found: dict[str, str] = {}
        for case in ET.parse(self.junit).iter("testcase"):
            name = str(case.get("name"))
            assert name not in found, f"{name} is reported twice:\n{self.out}"
            found[name] = next(
                (child.tag for child in case if child.tag in ("failure", "error", "skipped")),
                "passed",
            )
        return found

    def message(self, name: str) -> str:
        """The message of a test's failure or error."""
        return next(
            (
                str(child.get("message"))
                for child in self.case(name)
                if child.tag in ("failure", "error")
            ),
            "",
        )

    def text(self, name: str) -> str:
        """Everything that JUnit says of a test: message, traceback, output."""
        return "\n".join(self.case(name).itertext()) + self.message(name)


class Running:
    """A pytest that goes on, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], output: Path, junit: Path) -> None:
        self.process, self.output, self.junit = process, output, junit

    @property
    def so_far(self) -> Ran:
        return Ran(code=-1, out=self.output.read_text(), junit=self.junit)

    def until(self, *words: str) -> Ran:
        """What it has said once it has said all of these words."""
        assert eventually(
            lambda: (
                all(word in self.so_far.out for word in words) or self.process.poll() is not None
            ),
            within_s=LIMIT_S,
        ), f"{words} never came:\n{self.so_far.out}"
        said = self.so_far
        assert all(word in said.out for word in words), (
            f"it ended without saying {words}:\n{said.out}"
        )
        return said

    def wait(self) -> Ran:
        """Its end."""
        try:
            self.process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)
            raise AssertionError(f"no end after {LIMIT_S} s:\n{self.so_far.out}") from None
        return Ran(code=self.process.returncode, out=self.output.read_text(), junit=self.junit)


class Project:
    """A directory with tests in it, whose runs use the shared store unless told otherwise."""

    def __init__(self, root: Path, store: str) -> None:
        self.root, self.store = root, store
        self.runs = 0
        self.within: tuple[str, ...] = ()  # a command that runs what follows it
        root.mkdir(exist_ok=True)
        self.environ = {
            k: v
            for k, v in os.environ.items()
            if k != "CI" and not k.startswith(("GPU_CLUSTER_", "PYTEST_", "COV"))
        }
        self.environ["GPU_CLUSTER_STORE"] = store
        self.settings("")

    def settings(self, lines: str) -> None:
        """The keys of [tool.gpu-cluster]."""
        (self.root / "pyproject.toml").write_text(
            f"[tool.pytest.ini_options]\n[tool.gpu-cluster]\n{lines}\n"
        )

    def write(self, **files: str) -> None:
        """Files by name, `__` for a slash and without `.py`."""
        for name, text in files.items():
            path = self.root / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def argv(self, *args: str) -> list[str]:
        return [
            *self.within,
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:randomly",
            f"--junitxml={self.root / 'junit.xml'}",
            *args,
        ]

    def start(self, *args: str, **environ: str) -> Running:
        """`pytest --gpu-cluster ARGS` in the background; each run in a project writes a file of its own."""
        self.runs += 1
        output = self.root.parent / f"{self.root.name}-{self.runs}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                self.argv("--gpu-cluster", *args),
                cwd=self.root,
                env=self.environ | environ,
                text=True,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Running(process, output, self.root / "junit.xml")

    def run(self, *args: str, **environ: str) -> Ran:
        """`pytest --gpu-cluster ARGS` to its end."""
        return self.start(*args, **environ).wait()

    def plain(self, *args: str, **environ: str) -> Ran:
        """`pytest ARGS`, without our flag."""
        said = subprocess.run(
            self.argv(*args),
            cwd=self.root,
            env=self.environ | environ,
            text=True,
            timeout=LIMIT_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return Ran(code=said.returncode, out=said.stdout, junit=self.root / "junit.xml")

    def command(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """`gpu-cluster ARGS` in the project."""
        argv = [sys.executable, "-m", "pytest_gpu_cluster.cli", *args]
        return subprocess.run(
            argv,
            cwd=self.root,
            env=self.environ | environ,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def opened(self) -> Store:
        """The store, as the client has it."""
        return Store.open(self.store, base=self.root)

    def events(self, session: str) -> list[dict[str, object]]:
        """What the record holds of a session."""
        return [
            dict(event)
            for event in JournalReader(self.opened(), f"sessions/{session}/events").poll()
        ]

    def keys(self, prefix: str) -> list[str]:
        return self.opened().list(prefix)

    def get(self, key: str) -> bytes:
        """An object; journal segments unpacked."""
        raw = self.opened().get(key) or b""
        try:
            return zlib.decompress(raw)
        except zlib.error:
            return raw


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store for this run; at its end its clusters are closed and nothing of them may be left."""
    path = tmp_path_factory.mktemp("store") / "s"
    path.mkdir(mode=0o700)
    yield str(path)
    environ = os.environ | {"GPU_CLUSTER_STORE": str(path)}
    subprocess.run(
        [sys.executable, "-m", "pytest_gpu_cluster.cli", "down"],
        cwd=path,
        env=environ,
        check=True,
        timeout=60,
    )
    assert not processes_of(str(path)), "clusters of the tests outlived them"


@pytest.fixture
def project(tmp_path: Path, shared_store: str) -> Project:
    """A project on the shared store: its runs take the warm cluster of this run's tests, or start it."""
    return Project(tmp_path / "project", shared_store)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Project]:
    """A project with a store, and so clusters, of its own; whatever happens, they are closed at the end."""
    store = tmp_path / "store"
    made = Project(tmp_path / "project", str(store))
    yield made
    clusters = [
        path.parent.name
        for path in CLUSTERS.glob("*/guards.json")
        if str(store) in path.read_text()
    ]
    for name in clusters:
        provider("local").close(ClusterRef(provider="local", id=name))


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A virtual environment without pip; its site-packages holds links to ours but for `without`, and what `write` says."""

    def make(
        *,
        like_ours: bool = True,
        without: tuple[str, ...] = (),
        write: dict[str, str] | None = None,
    ) -> str:
        home = tmp_path_factory.mktemp("interpreter") / "v"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60
        )
        (site,) = home.glob("lib/python*/site-packages")
        ours = Path(sysconfig.get_paths()["purelib"])
        for entry in ours.iterdir() if like_ours else ():
            if not entry.name.lower().replace("_", "-").startswith(without):
                (site / entry.name).symlink_to(entry)
        for name, text in (write or {}).items():
            path = site / name
            if path.parent.is_symlink():
                path.parent.unlink()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(home / "bin" / "python")

    return make


def processes_of(store: str) -> list[str]:
    """Guards and keepers whose cluster uses this store."""
    found = []
    for path in CLUSTERS.glob("*/guards.json"):
        text = path.read_text()
        if store in text:
            found.append(f"{path}: {text}")
    return found


def left_of(cluster: str) -> list[str]:
    """What is still there of a cluster: its directory, and processes whose environment or command line names it."""
    mark = f"{CLUSTERS}/{cluster}/".encode()
    found = [str(CLUSTERS / cluster)] if cluster and (CLUSTERS / cluster).exists() else []
    for name in os.listdir("/proc") if cluster else ():
        if name.isdigit():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                if mark in Path(f"/proc/{name}/environ").read_bytes() or mark in line:
                    found.append(f"{name} {line.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def eventually(true: Callable[[], object], *, within_s: float = 30.0) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + within_s
    while not (said := bool(true())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return said


def pid_of(cluster: str, part: str) -> int:
    """A process of the cluster whose command line or kernel name has `part`; the oldest of several."""
    found = []
    for line in left_of(cluster):
        pid = line.split(" ", 1)[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and (
                part in line or part == Path(f"/proc/{pid}/comm").read_text().strip()
            ):
                found.append(int(pid))
    assert found, f"no {part} in cluster {cluster}: {left_of(cluster)}"
    return min(found)


def agent_of(cluster: str) -> int:
    """The oldest of the forked processes."""
    return pid_of(cluster, "gpu-worker")


def keeper_of(cluster: str) -> int:
    """The child of the guard: both have the same command line."""
    guard = pid_of(cluster, "pytest_gpu_cluster.node.guard")
    return next(
        int(pid) for pid in Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    )


def raylet_of(cluster: str, node: str) -> int:
    found = [line.split(" ", 1)[0] for line in left_of(cluster) if "raylet/raylet" in line]
    mark = f"{cluster}/{node}".encode()
    return next(
        int(pid)
        for pid in found
        if pid.isdigit() and mark in Path(f"/proc/{pid}/environ").read_bytes()
    )
