"""What both roles of a worker share: they are pytest plugins that turn hooks into messages and keep the reporter quiet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import xml_key

from pytest_gpu_cluster.contract.codec import text_of
from pytest_gpu_cluster.worker.hooks import around, foreign
from pytest_gpu_cluster.worker.prepare import Options
from pytest_gpu_cluster.worker.serialize import exception_repr, warning_record
from pytest_gpu_cluster.worker.streams import Channel, Outlet, TerminalFile


class Role:
    """A pytest session whose reporter is mute: the client shows everything, from what this sends."""

    config: pytest.Config

    def __init__(self, spec: dict[str, Any], channel: Channel, options: Options) -> None:
        self.spec, self.channel, self.options = spec, channel, options
        self.lossy: list[str] = []
        self.told_lossy: set[str] = set()
        self.outlet = Outlet(lambda text: self.text("tw", text))
        self.pending: tuple[str, str] = ("", "")
        self.outside = True  # pytest is not configured yet, or no longer
        self.early: list[tuple[str, str]] = []  # texts of that time
        self.interrupted_in: dict[str, Any] = {}
        self.log_position = 0

    # -- texts ---------------------------------------------------------------------------------------------------------

    def text(self, via: str, text: str) -> None:
        """Something was written: through the terminal reporter (tw), to stdout (out) or to stderr (err)."""
        if self.outside:
            self.early.append((via, text))
            return
        if self.pending[0] not in ("", via):
            self.flush()
        self.pending = (via, self.pending[1] + text)
        if text.endswith("\n"):
            self.flush()

    def flush(self) -> None:
        via, text = self.pending
        self.pending = ("", "")
        if text:
            self.emit_text(via, text)

    def emit_text(self, via: str, text: str) -> None:
        raise NotImplementedError

    def said(self, via: str, text: str) -> dict[str, Any]:
        """A text as a message or record; `fresh`: the reporter has ended the line that it was in, so the client's has too."""
        fresh = {"fresh": self.reporter.currentfspath is None} if via == "tw" else {}
        return {"kind": "output", "text": text, "via": via, "fd": 2 if via == "err" else 1, **fresh}

    # -- configuration -------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_addhooks(self, pluginmanager: pytest.PytestPluginManager) -> None:
        pluginmanager.register(Configured(self), "gpu_cluster_configured")

    def configured(self, config: pytest.Config) -> None:
        """After every other pytest_configure: the reporter exists now."""
        self.config = config
        self.outside = False
        self.reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        reporter = self.reporter
        if reporter is not None:  # addopts may have -p no:terminal
            reporter._tw._file = TerminalFile(self.outlet)
        for caller in (
            (config.pluginmanager.get_hookcallers(reporter) or ()) if reporter is not None else ()
        ):
            for implementation in caller.get_hookimpls():
                if implementation.plugin is reporter:
                    around(implementation, self.outlet.muted)
        for implementation in list(foreign(config.hook.pytest_terminal_summary)):
            if not self.summarises(implementation.plugin_name):
                config.hook.pytest_terminal_summary._remove_plugin(
                    implementation.plugin
                )  # private; what `unregister` calls
        if self.options.asked.get("xmlpath"):
            stub = XmlStub(config, self)
            config.stash[xml_key] = stub  # type: ignore[misc]
            config.pluginmanager.register(stub, "gpu_cluster_xml")
        for via, text in self.early:
            self.text(via, text)
        self.early.clear()

    # -- reports, warnings ---------------------------------------------------------------------------------------------

    def take_lossy(self, nodeid: str) -> Iterator[dict[str, Any]]:
        """A warning for each kind of object that could only be reported as text, once a session."""
        for name in dict.fromkeys(self.lossy):
            if name not in self.told_lossy:
                self.told_lossy.add(name)
                text = f"a report holds an object of type {name}, which reaches reporters as text"
                message = warnings.WarningMessage(
                    pytest.PytestWarning(text), pytest.PytestWarning, __file__, 1, line=""
                )
                yield warning_record(message, "runtest", nodeid, None)
        self.lossy.clear()

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        self.hear_warning(warning_record(warning_message, when, nodeid, location))

    def hear_warning(self, record: dict[str, Any]) -> None:
        raise NotImplementedError

    def hear_xml(self, **record: Any) -> None:
        raise NotImplementedError

    def summarises(self, plugin: str) -> bool:
        """Whether what this plugin writes at the end can be seen."""
        raise NotImplementedError

    def log_file_records(self) -> Iterator[dict[str, Any]]:
        """What the user's --log-file got since the last time."""
        path = Path(self.spec["scratch"], "log-file")
        if path.exists():
            with path.open("rb") as file:
                file.seek(self.log_position)
                data = file.read()
                self.log_position = file.tell()
            if data:
                yield {"kind": "log_file", "text": data.decode("utf-8", "replace")}

    # -- ends ----------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_internalerror(self, excrepr: Any) -> None:
        self.flush()
        self.channel.send("internal_error", text=text_of(excrepr), **self.interrupted_in)

    @pytest.hookimpl(trylast=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C, `pytest.exit`, or what a session raises to stop itself; the last is told elsewhere."""
        if isinstance(excinfo.value, pytest.Session.Interrupted):
            return
        self.flush()
        exit_ = excinfo.value if isinstance(excinfo.value, pytest.exit.Exception) else None
        self.channel.send(
            "interrupted",
            exit=exit_ is not None,
            text=text_of(exit_.msg if exit_ else excinfo.exconly()),
            returncode=exit_.returncode if exit_ else None,
            longrepr=exception_repr(self.config, excinfo) if not self.outside else None,
            **self.interrupted_in,
        )

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        self.flush()
        self.outside = True

    def end(self, exitstatus: int) -> None:
        """After pytest: what it wrote last, and the end itself."""
        late = "".join(text for via, text in self.early if via == "err")
        if exitstatus == pytest.ExitCode.USAGE_ERROR:
            self.channel.send("usage_error", text=late.replace("pytest.main()", "pytest"))
        elif exitstatus == pytest.ExitCode.INTERNAL_ERROR and not hasattr(self, "config"):
            self.channel.send("internal_error", text=late)
        elif late and self.spec["role"] == "select":
            self.channel.send("output", text=late, via="err", fd=2)
        coverage = os.environ.get("COVERAGE_FILE", "")
        data = {"coverage": coverage} if coverage and Path(coverage).exists() else {}
        self.channel.send("done", exitstatus=exitstatus, **self.outcome(), **data)

    def outcome(self) -> dict[str, Any]:
        return {}


class Configured:
    """Its pytest_configure runs after the terminal reporter's, which is itself a last one."""

    def __init__(self, role: Role) -> None:
        self.role = role

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self.role.configured(config)


class XmlStub:
    """In the place of the JUnit writer, so that `record_xml_attribute` and `record_testsuite_property` reach the real one."""

    def __init__(self, config: pytest.Config, role: Role) -> None:
        family = config.getini("junit_family")
        self.family = "xunit1" if family == "legacy" else family
        self._role = role
        self._nodeid = ""

    def node_reporter(self, report: Any) -> XmlStub:
        self._nodeid = str(getattr(report, "nodeid", report))
        return self

    def add_attribute(self, name: str, value: object) -> None:
        self._role.hear_xml(
            kind="xml_attribute", nodeid=self._nodeid, name=str(name), value=text_of(value)
        )

    def add_property(self, name: str, value: object) -> None:
        self._role.hear_xml(
            kind="xml_property", nodeid=self._nodeid, name=str(name), value=text_of(value)
        )

    def add_global_property(self, name: str, value: object) -> None:
        __tracebackhide__ = True
        if not isinstance(name, str):
            raise TypeError(f"name parameter needs to be a string, but {type(name).__name__} given")
        self._role.hear_xml(kind="xml_global", nodeid="", name=name, value=text_of(value))
