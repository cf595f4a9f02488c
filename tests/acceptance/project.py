"""A project of tests, the runs of pytest in it, and what each run printed and left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster.contract.journal_reader import JournalReader
from pytest_gpu_cluster.contract.store import Store
from tests.acceptance.processes import INTERNAL, eventually
from tests.replay_rig import WITHOUT

LIMIT_S = 120


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One finished pytest."""

    code: int
    out: str  # stdout and stderr as they came
    junit: Path

    @property
    def cluster(self) -> str:
        """The id of the cluster it ran on, as the terminal names it; empty when none was asked
        for.
        """
        match = re.search(r"gpu-cluster: cluster +(c[0-9a-f]{6})", self.out)
        return match[1] if match else ""

    @property
    def session(self) -> str:
        """The session's id, as the first and the last line give it."""
        match = re.search(r"gpu-cluster: session (\S+)", self.out)
        return match[1] if match else ""

    def case(self, name: str) -> ET.Element:
        """The one JUnit case of this name."""
        (case,) = [
            case for case in ET.parse(self.junit).iter("testcase") if case.get("name") == name
        ]
        return case

    def cases(self) -> dict[str, str]:
        """Outcome by test name: passed, failure, error or skipped. Each test stands there once."""
        outcomes: dict[str, str] = {}
        for case in ET.parse(self.junit).iter("testcase"):
            name = str(case.get("name"))
            assert name not in outcomes, f"{name} is reported twice:\n{self.out}"
            outcomes[name] = next(
                (child.tag for child in case if child.tag in ("failure", "error", "skipped")),
                "passed",
            )
        return outcomes

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
        """Return the run so far as soon as its output holds all of these words."""
        assert eventually(
            lambda: (
                all(word in self.so_far.out for word in words) or self.process.poll() is not None
            ),
            within_s=LIMIT_S,
        ), f"{words} never came:\n{self.so_far.out}"
        ran = self.so_far
        assert all(word in ran.out for word in words), (
            f"it ended without saying {words}:\n{ran.out}"
        )
        return ran

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
        self.pytest: tuple[str, ...] = (sys.executable, "-m", "pytest")
        root.mkdir(exist_ok=True)
        self.environ = {
            k: v
            for k, v in os.environ.items()
            if k.startswith(INTERNAL)
            or (k != "CI" and not k.startswith(("GPU_CLUSTER_", "PYTEST_", "COV")))
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
            *self.pytest,
            *WITHOUT,
            *("-p", "no:pytest_order"),  # its fixture would be in the goldens
            f"--junitxml={self.root / 'junit.xml'}",
            *args,
        ]

    def start(self, *args: str, **environ: str) -> Running:
        """`pytest --gpu-cluster ARGS` in the background; each run in a project writes a file of its
        own.
        """
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
        finished = subprocess.run(
            self.argv(*args),
            cwd=self.root,
            env=self.environ | environ,
            text=True,
            timeout=LIMIT_S,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return Ran(code=finished.returncode, out=finished.stdout, junit=self.root / "junit.xml")

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
        """Return the events in the record of a session."""
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
