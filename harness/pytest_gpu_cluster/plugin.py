"""The pytest side: options, and the run in the place of pytest's own collection and test loop.

Without --gpu-cluster this module declares options, marks and fixtures and does nothing else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gpu_cluster import options
from pytest_gpu_cluster.contract.errors import EXIT_CODES, HarnessError, RequestError
from pytest_gpu_cluster.fixtures import (  # noqa: F401 - fixtures
    MARKERS,
    artifacts,
    cluster,
    device,
    gpus,
    testrun_uid,
    worker_id,
)

if TYPE_CHECKING:
    from pytest_gpu_cluster.contract.codec import Event
    from pytest_gpu_cluster.reporting import Reporting


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> None:
    if early_config.known_args_namespace.gpu_cluster:
        from pytest_gpu_cluster.host import isolation

        isolation.ignore_user_code(early_config, parser, args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("gpu_plan"):
        return None
    from pytest_gpu_cluster.session import Session

    try:
        plan = Session(options.build_request(config, os.environ), pytest.__version__, {}).plan()
    except HarnessError as problem:
        raise pytest.UsageError(str(problem)) from problem
    for line in (
        *plan.lines,
        f"price     at most {plan.price_ceiling_usd:.2f} USD; nothing was started",
    ):
        print(line)
    return 0


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKERS:
        config.addinivalue_line("markers", line)
    if config.getoption("gpu_cluster"):
        from pytest_gpu_cluster.host import isolation

        isolation.configure(config)
        try:
            request = options.build_request(config, os.environ)
            config.pluginmanager.register(Host(config, request), "gpu_cluster_host")
        except HarnessError as problem:
            from pytest_gpu_cluster import reporting

            reporting.refused(config.rootpath, os.environ, problem)
            raise pytest.UsageError(str(problem)) from problem


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the same orderly way out as Ctrl-C."""


class Host:
    """Runs one session in the place of pytest's collection and loop."""

    def __init__(self, config: pytest.Config, request: Any) -> None:
        from pytest_gpu_cluster.host.progress import Progress
        from pytest_gpu_cluster.host.replay import Replay
        from pytest_gpu_cluster.publish import detect, facts
        from pytest_gpu_cluster.session import Session

        self.config = config
        self.replay = Replay(config)
        ci = detect(os.environ)
        quiet = bool(config.option.collectonly)  # a list of tests is no result
        told = facts(request, ci, os.environ, quiet=quiet)
        self.session = Session(request, pytest.__version__, self.replay.facts() | told)
        self.reporting: Reporting | None = None
        if (
            ci is not None or request.settings.results_dir
        ) and not quiet:  # on a laptop there is nobody to tell
            from pytest_gpu_cluster.reporting import Reporting

            self.reporting = Reporting(
                asked=self.session.asked,
                settings=request.settings,
                environ=os.environ,
                root=request.root,
                store=self.session.store,
                ci=ci,
            )
        self.progress = Progress(self.write, quiet=config.get_verbosity() < -1)
        self.events: Generator[Event, None, None] | None = None
        self.failure_class: str | None = None
        self.message = self.remedy = ""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.terminate)

    def write(self, line: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            if (
                reporter._tw._current_line
            ):  # private: a line of dots, whose end ensure_newline does not know with many workers
                reporter._tw.line()
            reporter.write_line(line)

    @staticmethod
    def terminate(number: int, frame: object) -> None:
        raise Terminated(signal.Signals(number).name)

    def again(self, number: int, frame: object) -> None:
        """A further Ctrl-C hurries the closing of the cluster. Before and after it there is only a summary to lose."""
        if self.session.closing:
            raise KeyboardInterrupt

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.pytest = session
        if self.reporting is not None:
            self.safely(self.reporting.clear)

    def safely(self, act: Callable[..., Any], **said: Any) -> Any:
        """A report that fails is said, and changes nothing of the run."""
        try:
            return act(**said)
        except Exception as problem:
            self.write(
                f"gpu-cluster: the report failed in {act.__name__}: {type(problem).__name__}: {problem}"
            )
            return None

    def pytest_report_header(self) -> str:
        return f"gpu-cluster: session {self.session.id}  {self.session.record}"

    def stream(self) -> Iterator[Event]:
        """The run's events, each shown to the terminal's progress on its way to the replay."""
        assert self.events is not None
        for event in self.events:
            self.progress.show(event)
            if self.reporting is not None:
                self.reporting.hear(event)
            if event.kind == "session_finished":
                self.failure_class, self.message = (
                    event.data.get("failure_class"),
                    event.data.get("message", ""),
                )
            yield event

    def pytest_collection(self, session: pytest.Session) -> bool:
        self.events = self.session.events()
        if self.reporting is not None:
            self.safely(self.reporting.begin)
        self.guarded(self.replay.collect, session)
        return True

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.guarded(self.replay.run, session)
        if self.failure_class is not None:
            self.replay.lose(session, self.message, failure_class=self.failure_class)
        self.bring_coverage()
        return True

    def bring_coverage(self) -> None:
        """What pytest-cov measured there, before it reports here."""
        ended = self.replay.ended
        keys = ended.get("coverage", []) if ended is not None else []
        parts = [data for key in keys if (data := self.session.store.get(key)) is not None]
        if parts:
            from pytest_gpu_cluster.host.coverage import write_coverage

            write_coverage(self.config, parts, self.replay.path_here)

    def guarded(self, stage: Any, session: pytest.Session) -> None:
        """A stage of the replay; what goes wrong on our side becomes the exit code that its class has."""
        try:
            stage(self.stream(), session)
        except RequestError as problem:
            self.failure_class, self.message, self.remedy = (
                problem.failure_class,
                problem.what,
                problem.remedy,
            )
            self.replay.lose(session, str(problem), failure_class="request")
            raise pytest.UsageError(str(problem)) from problem
        except HarnessError as problem:
            self.failure_class, self.message, self.remedy = (
                problem.failure_class,
                problem.what,
                problem.remedy,
            )
            self.replay.lose(
                session, problem.what, failure_class=problem.failure_class
            )  # of each test; the remedy is said once
        except (KeyboardInterrupt, pytest.exit.Exception):
            if not self.session.over:  # else a test raised it, which does not cost the warm cluster
                self.session.interrupted = True
                self.replay.expect_no_end()
                signal.signal(signal.SIGINT, self.again)
            raise

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Teardown comes before the report, so that a cluster that would not die is in it."""
        if (
            self.events is None
        ):  # a command of pytest's own that collects nothing, such as --cache-show
            return
        try:
            self.events.close()
        except HarnessError as problem:
            self.session.failure = problem
        except KeyboardInterrupt:  # asked a second time: at once, then
            self.session.interrupted = True
        if self.session.interrupted:
            self.session.close(now=True)
        self.describe_suite()
        self.replay.finish(session)
        session.exitstatus = self.exit_code(int(session.exitstatus))
        if self.session.recorded:
            self.seal(self.end(int(session.exitstatus)))
        if self.reporting is not None:
            self.safely(self.reporting.end, **self.end(int(session.exitstatus)))

    def describe_suite(self) -> None:
        """The session among JUnit's suite properties."""
        from _pytest.junitxml import xml_key

        if (xml := self.config.stash.get(xml_key, None)) is not None:
            xml.add_global_property("gpu-cluster.session", self.session.id)
            xml.add_global_property("gpu-cluster.record", self.session.record)
            xml.add_global_property(
                "gpu-cluster.simulated-gpus", str(self.progress.simulated).lower()
            )

    def exit_code(self, pytest_code: int) -> int:
        """pytest's own code, unless what failed was not a test."""
        code = EXIT_CODES.get(self.failure_class or "")
        if code is not None and pytest_code in (0, 1, 5) and not self.replay.own_failures:
            return code
        if self.session.failure is not None and pytest_code in (0, 5):
            return self.session.failure.exit_code
        return pytest_code

    def end(self, code: int) -> dict[str, Any]:
        """How the session ended, for the record and for reports."""
        failure_class, message, remedy, failure = (
            self.failure_class,
            self.message,
            self.remedy,
            self.session.failure,
        )
        if failure is not None and failure_class is None:
            failure_class, message, remedy = failure.failure_class, failure.what, failure.remedy
        return {
            "exitstatus": code,
            "failure_class": failure_class,
            "message": message,
            "remedy": remedy,
            "cancelled": self.session.interrupted,
        }

    def seal(self, end: dict[str, Any]) -> None:
        try:
            self.session.finish(**end)
        except HarnessError as problem:
            self.write(f"gpu-cluster: the record could not be finished: {problem}")

    def pytest_unconfigure(self) -> None:
        """The very last lines: what went wrong with machines, where the record is, what is still there."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        said = f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message
        lines = (
            [f"{self.failure_class}: {said}"]
            if self.message and self.failure_class not in (None, "request")
            else []
        )
        lines += [str(self.session.failure)] if self.session.failure is not None else []
        lines += (
            self.session.farewell(simulated=self.progress.simulated)
            if self.session.recorded
            else []
        )
        if self.reporting is not None and self.events is not None:
            final = int(self.pytest.exitstatus)  # a plugin may have changed it since
            self.safely(self.reporting.end, **self.end(final))
            try:
                lines += self.safely(self.reporting.tell) or []
            except KeyboardInterrupt:
                lines.append(
                    "interrupted while the CI host was told; to tell it: gpu-cluster report --publish"
                )
        for line in lines:
            self.write(f"gpu-cluster: {line}")
        if self.reporting is not None and self.events is not None:
            self.safely(self.reporting.close)
