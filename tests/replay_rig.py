"""Replay without a cluster: real workers as plain subprocesses, a trivial scheduler, and a
throw-away plugin.

`compare(scenario, tmp_path)` runs plain pytest and the replayed pytest on the same files and
returns both outcomes, normalised, so that a test can say they are equal. The shipped tree lies at
another absolute path, as on a real node.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_gpu_cluster.contract.events import Event
    from pytest_gpu_cluster.host.replay import Stage

ROOT = Path(__file__).resolve().parent.parent
# Plugins that no scenario asks for. The second takes a third of the start of a pytest process, of
# which a comparison has four.
WITHOUT = tuple(
    f"-pno:{name}"
    for name in ("randomly", "hypothesispytest", "allure_pytest", "benchmark", "syrupy")
)
EPOCH = 1_700_000_000.0  # unix seconds; each event is written a second after the one before


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
    """Plain and replayed outcome of a scenario, each in a directory of its own with the same
    name.
    """
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
    finished = start(scenario, home, scenario.args, replayed=replayed)
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
        exitcode=finished.returncode,
        out=normal(finished.stdout, home),
        err=normal(finished.stderr, home),
        raw=finished.stdout,
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
        *WITHOUT,
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

        isolation.ignore_user_code(early_config, parser, args)


def pytest_configure(config: pytest.Config) -> None:
    if "RIG_FAR" in os.environ:
        from pytest_gpu_cluster.host import isolation

        isolation.configure(config)
        config.pluginmanager.register(Host(config), "rig_host")


class Host:
    """As the real plugin's: pulls events and hands them to the replay."""

    def __init__(self, config: pytest.Config) -> None:
        from pytest_gpu_cluster.host.local_facts import local_facts
        from pytest_gpu_cluster.host.replay import Replay
        from tests.replay_cluster import Cluster

        self.replay = Replay(config)
        if "RIG_ALONE" in os.environ:
            print(f"RIG_PID={os.getpid()}")
        self.events: Iterator[Event] = Cluster(
            config, local_facts(config, config.rootpath)
        ).events()

    def stream(self) -> Iterator[Event]:
        """The events, without the first of the kind that RIG_CUT names; each is a line of the file
        that RIG_EVENTS names.
        """
        for event in iter(lambda: next(self.events, None), None):
            if event.kind == os.environ.get("RIG_CUT"):
                del os.environ["RIG_CUT"]
                continue
            if "RIG_EVENTS" in os.environ:
                line = {
                    **event.to_message(),
                    "v": 1,
                    "seq": event.seq,
                    "writer": event.writer,
                    "t": EPOCH + event.seq,
                }
                with Path(os.environ["RIG_EVENTS"]).open("a") as file:
                    file.write(json.dumps(line) + "\n")
            yield event

    def follow(self, stage: Stage) -> None:
        """Replay events until the replay has come to `stage`, as the real host does."""
        from pytest_gpu_cluster.host.replay import Stage

        stream = self.stream()
        while self.replay.stage < stage and (event := next(stream, None)) is not None:
            self.replay.event(event)
        if stage is Stage.ENDED:
            self.replay.conclude()
        elif self.replay.must_end:
            self.follow(Stage.ENDED)

    def pytest_collection(self, session: pytest.Session) -> bool:
        from pytest_gpu_cluster.host.replay import Stage

        self.replay.begin(session)
        self.follow(Stage.RUNNING)
        return True

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        from pytest_gpu_cluster.host.replay import Stage

        self.follow(Stage.ENDED)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.events.close()  # type: ignore[attr-defined]
        self.replay.finalize(session)
