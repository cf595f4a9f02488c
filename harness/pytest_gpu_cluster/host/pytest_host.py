"""The run in the place of pytest's own collection and test loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from _pytest.junitxml import xml_key

from pytest_gpu_cluster import publish
from pytest_gpu_cluster.contract.errors import HarnessError, RequestError
from pytest_gpu_cluster.contract.events import Event, SessionFinished
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.masking import not_masked_line
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.contract.request import PytestFacts, ReportFacts
from pytest_gpu_cluster.contract.settings import RunRequest
from pytest_gpu_cluster.host.arguments import refuse_wrong
from pytest_gpu_cluster.host.ending import RESULTS, Failure, decide, end_for_silence, stop_message
from pytest_gpu_cluster.host.local_facts import local_facts
from pytest_gpu_cluster.host.not_sent import NotSent
from pytest_gpu_cluster.host.outputs import artifact_lines, output_lines
from pytest_gpu_cluster.host.replay import Replay, Stage
from pytest_gpu_cluster.publish.links import link
from pytest_gpu_cluster.report.files import write_refusal
from pytest_gpu_cluster.report.model import ReportContext
from pytest_gpu_cluster.report.sinks import SinkContext, Sinks
from pytest_gpu_cluster.session import Run, Terminated
from pytest_gpu_cluster.session import Stage as RunStage

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = "interrupted while the CI host was told; to tell it: gpu-cluster report --publish"


class PytestHost:
    """Runs one session in the place of pytest's collection and loop."""

    def __init__(self, config: pytest.Config, request: RunRequest) -> None:
        self.config = config
        self.replay = Replay(config)
        self._quiet = bool(config.option.collectonly)  # a list of tests is no result
        self._ci = publish.detect(os.environ)
        facts = publish.facts(request, self._ci, os.environ, quiet=self._quiet)
        self._request = request
        self.run = Run(request, pytest.__version__, local_facts(config, request.tree.top), facts)
        self.run.say, self.run.waiting = self.write, self.replay.terminal.show_wait
        self._not_sent = NotSent(config, request)
        self._events: Generator[Event, None, None] | None = None  # None: nothing is collected
        self._sinks: Sinks | None = None
        self._failure: Failure | None = None  # beside the tests
        for number in SIGNALS:
            signal.signal(number, _terminate)

    def write(self, line: str) -> None:
        """Write a line of this plugin's own to the terminal."""
        self.replay.terminal.end_wait()
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            # Private: a line of dots, whose end ensure_newline does not know with many workers.
            if reporter._tw._current_line:
                reporter._tw.line()
            reporter.write_line(f"gpu-cluster: {self.run.mask(line)}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session
        self._sinks = Sinks(self._sink_context(), self.run.stored_request())

    def pytest_report_header(self) -> list[str]:
        lines = [f"gpu-cluster: session {self.run.id}  {self.run.record.url}"]
        if self._request.settings_note:
            lines.append(f"gpu-cluster: {self._request.settings_note}")
        if not_masked := not_masked_line(self.run.passed):
            lines.append(f"gpu-cluster: {not_masked}")
        return lines

    # -- the run -----------------------------------------------------------------------------------

    def pytest_collection(self, session: pytest.Session) -> bool:
        self._events = self._run_events()
        self.replay.begin(session)
        self._follow_safely(Stage.RUNNING)
        return True

    def _run_events(self) -> Generator[Event, None, None]:
        refuse_wrong(self.config, self._request)
        yield from self.run.events()

    def _sink_context(self) -> SinkContext:
        settings, ci = self.run.settings, self._ci
        reports = settings.reports
        if self._quiet:  # nobody is told
            reports, ci = replace(reports, results_dir="", publish=False), None
        url, own_page = link(reports.public_url, self.run.id, ci)
        return SinkContext(
            settings=replace(settings, reports=reports),
            environ=os.environ,
            root=self._request.project,
            record=self.run.record,
            report=ReportContext(
                suite=reports.suite,
                link=url,
                own_page=own_page,
                record=self.run.record.url,
                branch=ci.branch if ci is not None else "",
                commit=ci.commit if ci is not None else "",
            ),
            ci=ci,
            write=self.write,
            echo=print,
            verbosity=self.config.get_verbosity(),
        )

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._follow_safely(Stage.ENDED)
        self._forgive_silence()
        if self._failure is not None:
            self.replay.fail_unfinished(self._failure.message, self._failure.failure_class)
        try:
            self._combine_coverage()
        except HarnessError as problem:  # the results stand; what they covered is not known
            self._failure = self._failure or Failure.of(problem)
        return True

    def _forgive_silence(self) -> None:
        """Let the tests decide, where all had finished when the session ended without its client.

        This client was stopped and is back, with nothing of its results missing.
        """
        ended, failure = self.replay.ended, self._failure
        if failure is None or ended is None or ended.stop is not StopReason.CLIENT_LOST:
            return
        if self.replay.complete:
            self.write(f"all tests had finished when this session was ended: {failure.message}")
            self._failure = None

    def _follow(self, stage: Stage) -> None:
        """Pass the events on until the replay is at `stage`; raise the end of the session here."""
        assert self._events is not None
        assert self._sinks is not None
        while self.replay.stage < stage and (event := next(self._events, None)) is not None:
            self.replay.terminal.end_wait()
            if isinstance(event, SessionFinished):
                event = end_for_silence(event)
                self._failure = Failure.of_event(event)
            self._sinks.event(event)
            self._not_sent.note(event)
            self.replay.event(event)
        if stage is Stage.ENDED:
            self.replay.conclude()
        elif self.replay.must_end:
            self._follow(Stage.ENDED)

    def _follow_safely(self, stage: Stage) -> None:
        """Follow, and turn what goes wrong on this side into the failure of the session."""
        try:
            self._follow(stage)
        except RequestError as problem:
            self._failure, text = Failure.of(problem), self.run.mask(str(problem))
            self.replay.fail_unfinished(text, FailureClass.REQUEST)
            raise pytest.UsageError(text) from problem
        except HarnessError as problem:
            self._failure = Failure.of(problem)
            # Of each test; the remedy is said once.
            self.replay.fail_unfinished(self.run.mask(problem.what), problem.failure_class)
        except (KeyboardInterrupt, pytest.exit.Exception) as problem:
            # Else a test raised it, and the session is over.
            if self.run.stage is not RunStage.FINISHED or self.run.interrupted:
                self._end_interrupted(problem)
            raise

    def _end_interrupted(self, problem: BaseException) -> None:
        """End the tests for the user, and show the results that had come by then."""
        assert self._events is not None
        assert self._sinks is not None
        signal.signal(signal.SIGINT, self._hurry)
        self.run.interrupt(problem)
        self._release()
        for event in self.run.unread():
            if not isinstance(event, SessionFinished):
                self._sinks.event(event)
                self.replay.event(event)
        self.replay.interrupt(problem)

    def _release(self) -> None:
        """Close the generator of the run, which lets the cluster stay warm or ends it."""
        assert self._events is not None
        try:
            self._events.close()
        except HarnessError as problem:
            self.run.teardown_failure = problem
        except KeyboardInterrupt:  # asked a second time: at once, then
            self.run.interrupted = self.run.must_end = True
        if self.run.interrupted and not self.run.stays_warm():
            self.run.close_cluster(now=True)

    def _hurry(self, number: int, frame: object) -> None:
        """End the cluster too for a further Ctrl-C, at once where it is being let go.

        Elsewhere it waits for the end of the summary, which it would only cut off.
        """
        self.run.must_end = True
        if self.run.releasing:
            raise KeyboardInterrupt

    def _combine_coverage(self) -> None:
        """Give pytest-cov what was measured on the cluster, before it reports here."""
        ended = self.replay.ended
        parts = self.run.record.coverage(ended.coverage if ended is not None else ())
        if parts:
            from pytest_gpu_cluster.host.coverage import write_coverage

            write_coverage(self.config, parts, self.replay.path_here)

    # -- the end -----------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Tear down before the report, so that a cluster that would not close is in it."""
        if self._events is None:  # a command of pytest's own that collects nothing: --cache-show
            return (yield)
        code = self._finish(session)
        result = yield
        if code not in RESULTS:  # of pytest: syrupy adds the bits of pytest's own status to it
            session.exitstatus = code
        return result

    def _finish(self, session: pytest.Session) -> int:
        """End what this session holds, and return its exit code."""
        self._release()
        self._describe_suite()
        self.replay.finalize(session)
        ending = self.ending(int(session.exitstatus))
        session.exitstatus = ending.exit_code if ending.exit_code is not None else 1
        if self.run.stage is not RunStage.NEW:
            self._write_result(ending)
        if self._sinks is not None:
            self._sinks.ended(self.ending(int(session.exitstatus)))
        return int(session.exitstatus)

    def ending(self, pytest_status: int) -> Ending:
        """Return how the session ends, given pytest's own exit status."""
        teardown = (
            Failure.of(self.run.teardown_failure) if self.run.teardown_failure is not None else None
        )
        return decide(
            pytest_status,
            failure=self._failure,
            teardown=teardown,
            failed_tests=bool(self.replay.own_failures),
            interrupted=self.run.interrupted,
            message=stop_message(self.replay.ended),
        )

    def _describe_suite(self) -> None:
        """Put the session among JUnit's suite properties."""
        xml = self.config.stash.get(xml_key, None)
        if xml is not None and self._sinks is not None:
            xml.add_global_property("gpu-cluster.session", self.run.id)
            xml.add_global_property("gpu-cluster.record", self.run.record.url)
            simulated = str(self._sinks.facts.simulated).lower()
            xml.add_global_property("gpu-cluster.simulated-gpus", simulated)

    def _write_result(self, ending: Ending) -> None:
        try:
            self.run.write_result(ending, self.replay.terminal.counts())
        except HarnessError as problem:
            self.write(f"the record could not be finished: {problem}")

    def pytest_unconfigure(self) -> None:
        """Write the last lines: failures of machines, the record, a cluster that stays."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self.run.end_late()
        lines = [*self._failure_lines(), *self._not_sent_lines(), *self._file_lines()]
        sinks = self._sinks if self._events is not None else None
        if self.run.stage is not RunStage.NEW and sinks is not None:
            lines += self._closing_lines(sinks)
        if sinks is not None:
            final = int(self._session.exitstatus)  # a plugin may have changed it since
            try:
                lines += sinks.finish(self.ending(final)).lines
            except KeyboardInterrupt:
                lines.append(INTERRUPTED)
        for line in lines:
            self.write(line)
        for line in sinks.last_output() if sinks is not None else ():
            print(line)

    def _not_sent_lines(self) -> list[str]:
        try:
            return self._not_sent.lines(self.run.store, self.run.request.tree)
        except (HarnessError, ValueError):  # a hint is not worth an error
            return []

    def _file_lines(self) -> list[str]:
        """Bring home what the tests wrote, and return the lines about it, none with -qq."""
        run = self.run
        if self._events is None or run.cluster is None:
            return []
        try:
            home, artifacts = run.bring_home(), run.record.artifacts()
        except HarnessError as problem:
            return [f"outputs: what the tests wrote could not be read: {problem}"]
        quiet = self.config.get_verbosity() < -1
        lines = [*output_lines(home, run.id), *artifact_lines(artifacts, run.id)]
        return [] if quiet else lines

    def _closing_lines(self, sinks: Sinks) -> list[str]:
        """Return the lines below the results; with -q a list of tests has none."""
        quiet = self.config.get_verbosity() < 0
        if quiet and self.config.option.collectonly:
            return []
        return self.run.closing_lines(simulated=sinks.facts.simulated, quiet=quiet)

    def _failure_lines(self) -> list[str]:
        lines = []
        failure = self._failure
        if (
            failure is not None
            and failure.message
            and failure.failure_class is not FailureClass.REQUEST
        ):
            remedy = f"\n  remedy: {failure.remedy}" if failure.remedy else ""
            lines.append(f"{failure.failure_class}: {failure.message}{remedy}")
        if self.run.teardown_failure is not None:
            lines.append(str(self.run.teardown_failure))
        return lines


def plan_lines(request: RunRequest) -> list[str]:
    """Return what would be launched, a line each; spends nothing. Raises RequestError."""
    return Run(request, pytest.__version__, PytestFacts(), ReportFacts()).plan_lines()


def report_refusal(root: Path, environ: Mapping[str, str], problem: HarnessError) -> None:
    """In CI, write a refused request into the JUnit file, over a result of the last time."""
    if publish.detect(environ) is not None:
        write_refusal(root, environ, problem)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated(signal.Signals(number).name)
