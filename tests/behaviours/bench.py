"""Two sides of one small project in the same directory: plain pytest, then `pytest --gpu-cluster`.

The tree is taken away while the second side runs. All runs share one store and with it one warm
cluster of two simulated GPUs: a default demand of two GPUs makes one worker of it, a demand of one
makes two.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.processes import INTERNAL
from tests.behaviours.normal import normal, normal_xml
from tests.behaviours.outcome import Outcome, agree, sorted_header
from tests.replay_rig import WITHOUT, Scenario, write

LIMIT_S = 120
PASSED = "PYTEST_*,CI,BUILD_NUMBER,PYTHONIOENCODING,COV_CORE_*"


class Running:
    """`pytest --gpu-cluster` while it goes on."""

    def __init__(
        self,
        bench: Bench,
        scenario: Scenario,
        args: tuple[str, ...],
        workers: int,
        environ: dict[str, str],
    ) -> None:
        self.bench, self.scenario = bench, scenario
        self.earlier = bench.requests()
        self.outputs = bench.home / "out.txt", bench.home / "err.txt"
        env = {
            **bench.environ,
            "GPU_CLUSTER_DEFAULT_GPUS": "2" if workers == 1 else "1",
            **scenario.env,
            **environ,
        }
        with self.outputs[0].open("wb") as out, self.outputs[1].open("wb") as err:
            self.process = subprocess.Popen(
                bench.argv("--gpu-cluster", *args),
                cwd=bench.project / scenario.cwd,
                env=env,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        self.away = False

    @property
    def out(self) -> str:
        return self.outputs[0].read_text(errors="replace")

    @property
    def session(self) -> str:
        return next(iter(self.bench.requests() - self.earlier), "")

    def shipped(self, *, keep: bool = False) -> bool:
        """Wait until the tree is in the store or the process has ended, then take the tree away
        unless it is to stay.
        """
        deadline = time.monotonic() + LIMIT_S
        while not self.session and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        self.away = bool(self.session) and not keep
        if self.away:
            self.bench.project.rename(self.bench.aside)
            (self.bench.project / self.scenario.cwd).mkdir(
                parents=True
            )  # empty: pytest itself goes back to it at its end
            cache = (
                self.bench.aside / ".pytest_cache"
            )  # the local pytest's own, which it compares with at its end
            if cache.exists():
                shutil.copytree(cache, self.bench.project / ".pytest_cache")
        return bool(self.session)

    def until(self, true: Callable[[], object]) -> None:
        """Wait until something holds; fail when the process ends before."""
        deadline = time.monotonic() + LIMIT_S
        while not true():
            assert self.process.poll() is None, f"it ended before that:\n{self.out}"
            assert time.monotonic() < deadline, f"it never came:\n{self.out}"
            time.sleep(0.02)

    def wait(self) -> Outcome:
        """Its end. What it wrote under the old name joins what was there."""
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            raise AssertionError(f"no end after {LIMIT_S} s:\n{self.out}") from None
        project, aside = self.bench.project, self.bench.aside
        if self.away:
            shutil.copytree(project, aside, dirs_exist_ok=True)
            shutil.rmtree(project)
            aside.rename(project)
        out, err = (path.read_text(errors="replace") for path in self.outputs)
        return self.bench.outcome(self.process.returncode, out, err, self.session)


class Bench:
    """A place for one project after the other, always under the same path, so that not even the
    width of a path differs.
    """

    def __init__(self, home: Path, store: str) -> None:
        self.home, self.store = home, Path(store)
        self.project, self.aside = home / "project", home / "taken-away"
        hidden = (
            "CI",
            "BUILD_NUMBER",
            "PYTEST",
            "COV",
            "GPU_CLUSTER_",
            "PYTHONIOENCODING",
            "NO_COLOR",
            "FORCE_COLOR",
        )
        plain = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(INTERNAL) or not name.startswith(hidden)
        }
        self.environ = plain | {
            "GPU_CLUSTER_STORE": store,
            "GPU_CLUSTER_IDLE_MINUTES": "10",
            "GPU_CLUSTER_SIMULATED_GPUS": "2",
            "GPU_CLUSTER_PASS_ENV": PASSED,
            "GPU_CLUSTER_KEEP_SESSIONS": "1000",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "100",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    # -- the two sides -----------------------------------------------------------------------------

    def plain(self, scenario: Scenario, *args: str) -> Outcome:
        """Plain pytest."""
        self.fresh(scenario)
        for before in scenario.before:
            self.run_plain(scenario, before)
        write(self.project, scenario.change)
        return self.run_plain(scenario, (*scenario.args, *args))

    def ours(
        self,
        scenario: Scenario,
        *args: str,
        workers: int = 1,
        shipped: bool = True,
        keep: bool = False,
        keep_history: bool = False,
        **environ: str,
    ) -> Outcome:
        """The same through `--gpu-cluster`; `shipped` says whether it is to come so far that the
        tree is uploaded.

        The tree is taken away then, unless this side has to read its sources (`keep`).
        """
        return self.start(
            scenario,
            *args,
            workers=workers,
            shipped=shipped,
            keep=keep,
            keep_history=keep_history,
            **environ,
        ).wait()

    def start(
        self,
        scenario: Scenario,
        *args: str,
        workers: int = 1,
        shipped: bool = True,
        keep: bool = False,
        keep_history: bool = False,
        **environ: str,
    ) -> Running:
        """`ours`, while it goes on."""
        self.fresh(scenario)
        if workers > 1 and not keep_history:
            (self.store / "history/durations.json").unlink(
                missing_ok=True
            )  # known short tests are not worth a second worker
        for before in scenario.before:
            self.run_ours(scenario, before, workers, environ).wait()
        write(self.project, scenario.change)
        running = Running(self, scenario, with_junit((*scenario.args, *args)), workers, environ)
        assert running.shipped(keep=keep) == shipped, (
            running.wait().out + running.outputs[1].read_text()
        )
        return running

    def same(self, scenario: Scenario, *, header: bool = True, workers: int = 1) -> Outcome:
        """Assert that one worker gives what plain pytest gives: exit code, stdout, stderr, JUnit,
        cache; the outcome. Two give it too, where the order of tests binds.

        The header lines of conftests arrive when pytest's own have been printed: without `header`
        their order is left out.
        """
        plain, ours = self.plain(scenario), self.ours(scenario, workers=workers)
        if header:
            agree(plain, ours)
        else:
            agree(sorted_header(plain), sorted_header(ours))
        return ours

    def refused(self, scenario: Scenario) -> Outcome:
        """Assert that pytest is refused there with the exit code and the words of plain pytest; the
        outcome.

        Plain pytest stops before its header, and before it has a cache or JUnit file; here the
        header has been printed by then. It calls itself as it was started; there, nobody typed
        `python -m`.
        """
        plain, ours = self.plain(scenario), self.ours(scenario)
        assert ours.code == plain.code == 4, ours.out + ours.err
        assert ours.err == plain.err.replace("python -m pytest", "pytest").replace(
            "__main__.py", "pytest"
        )
        assert "passed" not in ours.out
        return ours

    def alike(self, scenario: Scenario) -> Outcome:
        """Assert that two workers give what does not depend on order: exit code, JUnit, counts,
        each line as often; the outcome.
        """
        plain, ours = self.plain(scenario, "-v"), self.ours(scenario, "-v", workers=2)
        assert ours.code == plain.code, ours.out + ours.err
        assert ours.lines == plain.lines
        assert ours.counts == plain.counts
        assert ours.junit == plain.junit
        return ours

    # -- their parts -------------------------------------------------------------------------------

    def beside(self, name: str) -> Path:
        """A path outside the project, which tests on the cluster write to and this side reads."""
        return self.home.parent / name

    def fresh(self, scenario: Scenario) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        write(self.project, without_addresses(scenario.files))

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "pytest", *WITHOUT, "-p", "no:anyio", *args]

    def run_plain(self, scenario: Scenario, args: tuple[str, ...]) -> Outcome:
        finished = subprocess.run(
            self.argv(*with_junit(args)),
            cwd=self.project / scenario.cwd,
            env={**self.environ, **scenario.env},
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return self.outcome(
            finished.returncode,
            finished.stdout.decode(errors="replace"),
            finished.stderr.decode(errors="replace"),
            "",
        )

    def run_ours(
        self, scenario: Scenario, args: tuple[str, ...], workers: int, environ: dict[str, str]
    ) -> Running:
        running = Running(self, scenario, with_junit(args), workers, environ)
        assert running.shipped(), running.wait().out
        return running

    def outcome(self, code: int, out: str, err: str, session: str) -> Outcome:
        values = next(
            iter(sorted(self.project.glob("**/.pytest_cache/v/cache"))), self.project / "none"
        )
        cache = {path.name: json.loads(path.read_text()) for path in sorted(values.glob("*"))}
        if "stepwise" in cache:
            cache["stepwise"].pop("last_cache_date_str", None)
        junit = next(iter(sorted(self.project.glob("**/junit.xml"))), None)
        xml = normal_xml(junit.read_text(), self.project) if junit is not None else ""
        return Outcome(
            code=code,
            out=normal(out, self.project),
            err=normal(err, self.project),
            junit=xml,
            cache=cache,
            raw=out,
            session=session,
        )

    def command(self, *args: str) -> str:
        """Return what `gpu-cluster ARGS` says in the project."""
        finished = subprocess.run(
            [sys.executable, "-m", "pytest_gpu_cluster.cli", *args],
            cwd=self.project,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return finished.stdout + finished.stderr

    def requests(self) -> set[str]:
        """Sessions whose tree is in the store."""
        paths = self.store.glob("sessions/*/request.json")
        return {
            str(path.parent.relative_to(self.store))
            for path in paths
            if '"tree"' in path.read_text()
        }

    def events(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return the events in the record of a run."""
        from pytest_gpu_cluster.contract.journal_reader import JournalReader
        from pytest_gpu_cluster.contract.store import Store

        return [
            dict(event)
            for event in JournalReader(
                Store.open(str(self.store), base=self.store), f"{outcome.session}/events"
            ).poll()
        ]


def with_junit(args: tuple[str, ...]) -> tuple[str, ...]:
    return (
        args
        if any(arg.startswith("--junitxml") or arg == "no:junitxml" for arg in args)
        else (*args, "--junitxml=junit.xml")
    )


def without_addresses(files: dict[str, str]) -> dict[str, str]:
    """The memory address in the repr of a plain object differs between any two processes: our
    classes have a repr.
    """
    named = "class TestClass:\n    def __repr__(self): return 'a TestClass'\n"
    return {name: text.replace("class TestClass:\n", named) for name, text in files.items()}
