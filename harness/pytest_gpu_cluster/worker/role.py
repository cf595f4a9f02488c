"""The base of both kinds of remote session: pytest plugins that turn hooks into messages."""

from __future__ import annotations

import contextlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pluggy
import pytest
from _pytest.debugging import pytestPDB
from _pytest.junitxml import xml_key
from _pytest.terminal import TerminalReporter

from pytest_gpu_cluster.contract.codec import text_of
from pytest_gpu_cluster.contract.events import InternalError, Interrupted, Output, UsageError
from pytest_gpu_cluster.contract.fields import JsonValue
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.messages import Done
from pytest_gpu_cluster.contract.records import PluginText, TestRecord, WarningRecord, XmlRecord
from pytest_gpu_cluster.contract.specs import Role, WorkerSpec
from pytest_gpu_cluster.worker.hooks import surround, third_party
from pytest_gpu_cluster.worker.prepare import Options
from pytest_gpu_cluster.worker.serialize import LossyTypes, exception_repr, warning_record
from pytest_gpu_cluster.worker.streams import Channel, Outlet, TerminalFile, Texts, Via
from pytest_gpu_cluster.worker.xml_stub import XmlStub


@dataclass(frozen=True, kw_only=True)
class RunningTest:
    """The test in which a session was interrupted, with what it had recorded."""

    nodeid: str = ""
    attempt: int = 0
    records: Sequence[TestRecord] = ()


def refuse_debugger(config: pytest.Config) -> None:
    """Have a prompt that nobody can answer fail the test.

    A pytest that a test runs in its own process keeps its debugger, for which the test answers.
    """
    prompt: Callable[..., Any] = pytestPDB._init_pdb

    def init_pdb(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if pytestPDB._config not in (config, None):
            return prompt(*args, **kwargs)
        pytest.fail(
            "a debugger needs a terminal beside the test, which a cluster does not have; run this"
            " test here: the same command without --gpu-cluster, and with its node id"
        )

    # Private; `breakpoint()`, `pdb.set_trace` and `pytest.set_trace` all come by.
    pytestPDB._init_pdb = init_pdb  # type: ignore[method-assign]


class RemoteSession(ABC):
    """A pytest session with a mute reporter: the client shows everything, from the messages."""

    config: pytest.Config
    reporter: TerminalReporter | None  # None: addopts may have -p no:terminal

    def __init__(self, spec: WorkerSpec, channel: Channel, options: Options) -> None:
        self.spec, self.channel, self.options = spec, channel, options
        self.texts = Texts(self._emit_text)
        self.part: list[str] | None = None  # texts of the summary that a plugin is writing
        self.parts: list[PluginText] = []
        self.outlet = Outlet(lambda text: self.texts.write("tw", text))
        self.lossy = LossyTypes()
        self.interrupted_in = RunningTest()
        self.snapshots: JsonValue = None  # syrupy's report of this process
        self.tests_status: int | None = None  # pytest's exit status before hooks of its end

    # -- the parts that differ ---------------------------------------------------------------------

    @abstractmethod
    def emit_text(self, via: Via, text: str) -> None:
        """Send, record or write a text of the configured session."""

    @abstractmethod
    def on_warning(self, record: WarningRecord) -> None:
        """Take note of a warning that pytest has recorded."""

    @abstractmethod
    def on_xml(self, record: XmlRecord) -> None:
        """Take note of something that a test adds to JUnit's XML."""

    @abstractmethod
    def shows_summary_of(self, implementation: pluggy.HookImpl) -> bool:
        """Return True if the text that this plugin writes at the end can be seen."""

    def stop_requests(self) -> tuple[bool | str | None, bool | str | None]:
        """Return pytest's `shouldfail` and `shouldstop` for the end of the remote session."""
        return None, None

    def unused_gpu(self) -> int:
        """Return the number of tests that certainly did not touch the GPU they held by default."""
        return 0

    def at_line_start(self) -> bool:
        """Return True if the reporter has ended its line, so that the client's has to end too."""
        return self.reporter is None or self.reporter.currentfspath is None

    # -- configuration -----------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_load_initial_conftests(self, early_config: pytest.Config) -> Iterator[None]:
        """Register the last plugin to be configured: of the last ones, the youngest comes last."""
        result = yield
        early_config.pluginmanager.register(LastConfigured(self), "gpu_cluster_configured")
        return result

    def configure(self, config: pytest.Config) -> None:
        """Mute the reporter. It exists now, after every other pytest_configure."""
        self.config = config
        self.reporter = config.pluginmanager.get_plugin("terminalreporter")
        if self.reporter is not None:
            self._mute(self.reporter)
        summary = config.hook.pytest_terminal_summary
        for implementation in list(third_party(summary)):
            if not self.shows_summary_of(implementation):
                summary._remove_plugin(implementation.plugin)  # private; `unregister` calls it
        if self.options.typed.get("xmlpath"):
            stub = XmlStub(config, self.on_xml)
            config.stash[xml_key] = stub  # type: ignore[misc]  # it stands in for pytest's LogXML
            config.pluginmanager.register(stub, "gpu_cluster_xml")
        refuse_debugger(config)
        self.texts.begin()

    def _mute(self, reporter: TerminalReporter) -> None:
        file = TerminalFile(self.outlet)
        reporter._tw._file = file
        for caller in self.config.pluginmanager.get_hookcallers(reporter) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is reporter:
                    surround(implementation, self.outlet.muted)

    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        self.on_warning(warning_record(warning_message, when, nodeid, location))

    def _emit_text(self, via: Via, text: str) -> None:
        if self.part is not None:
            self.part.append(text)
        else:
            self.emit_text(via, text)

    def part_of(self, plugin: str) -> Callable[[], AbstractContextManager[None]]:
        """Return a context that makes the plugin's texts a part of the summary.

        The plugin writes them to the reporter or to stdout.
        """

        @contextlib.contextmanager
        def context() -> Iterator[None]:
            self.texts.flush()
            self.part = []
            typed = self.options.typed
            if self.reporter is not None and (typed.get("xmlpath") or typed.get("htmlpath")):
                # Their own lines, which the client writes, end the line of results.
                self.reporter.currentfspath = None
            try:
                with self.outlet.into(lambda text: self.texts.write("tw", text)):
                    yield
            finally:
                self.texts.flush()
                text, self.part = "".join(self.part), None
                if text:
                    part: PluginText = {
                        "plugin": plugin,
                        "text": text,
                        "fresh": self.at_line_start(),
                    }
                    self.parts.append(part)

        return context

    # -- ends --------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_internalerror(self, excrepr: object) -> None:
        self.texts.flush()
        self.channel.send(InternalError(text=text_of(excrepr), **vars(self.interrupted_in)))

    @pytest.hookimpl(trylast=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Send Ctrl-C or `pytest.exit`.

        An exception by which the session stops itself is sent elsewhere.
        """
        problem = excinfo.value
        if isinstance(problem, pytest.Session.Interrupted):
            return
        self.texts.flush()
        exit_ = problem if isinstance(problem, pytest.exit.Exception) else None
        self.channel.send(
            Interrupted(
                text=text_of(exit_.msg if exit_ else excinfo.exconly()),
                exit=exit_ is not None,
                returncode=_number(exit_.returncode) if exit_ else None,
                longrepr=exception_repr(self.config, excinfo) if self.texts.configured else None,
                **vars(self.interrupted_in),
            )
        )

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        self.texts.end()

    def end(self, status: int) -> None:
        """Send the last texts and the end itself, after pytest has returned its exit status."""
        stderr = "".join(text for via, text in self.texts.unconfigured if via == "err")
        if status == pytest.ExitCode.USAGE_ERROR:
            self.channel.send(UsageError(text=stderr.replace("pytest.main()", "pytest")))
        elif status == pytest.ExitCode.INTERNAL_ERROR and not hasattr(self, "config"):
            self.channel.send(InternalError(text=stderr))
        elif stderr and self.spec.role is Role.SELECT:
            self.channel.send(Output(text=stderr, via="err", fd=2))
        coverage = os.environ.get("COVERAGE_FILE", "")
        shouldfail, shouldstop = self.stop_requests()
        self.channel.send(
            Done(
                exitstatus=status,
                tests_status=self.tests_status,
                snapshots=self.snapshots,
                shouldfail=shouldfail,
                shouldstop=shouldstop,
                coverage=coverage if coverage and Path(coverage).exists() else "",
                unused_gpu=self.unused_gpu(),
            )
        )


class LastConfigured:
    """A plugin whose pytest_configure runs after all others.

    The terminal reporter's is a last one too, and so is that of a plugin that replaces it.
    """

    def __init__(self, session: RemoteSession) -> None:
        self._session = session

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self._session.configure(config)


def stop_request(value: object) -> str | bool:
    """Return pytest's `shouldfail` or `shouldstop`, which a hook may have set to anything."""
    return value if isinstance(value, str | bool) else text_of(value) if value else False


def _number(value: object) -> int | None:
    """Return the return code that somebody gave to `pytest.exit`."""
    return int(value) if isinstance(value, int) else None
