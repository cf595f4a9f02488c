"""pytest's terminal reporter, told of what happened elsewhere.

The reporter has no public way to be told of lines, warnings and text that other processes made, so
this touches its private parts; each place says which.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from pytest_gpu_cluster.contract.codec import PathMap, from_wire
from pytest_gpu_cluster.contract.events import Output, Summary
from pytest_gpu_cluster.contract.records import PluginLines, WarningRecord
from pytest_gpu_cluster.host import deserialize

COUNTED = ("failed", "passed", "skipped", "xfailed", "xpassed", "error")


class Terminal:
    """The local reporter. With `-p no:terminal` there is none, and nothing is shown."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.paths = PathMap([])  # from the cluster's tree to the one here
        self.workers = 1
        self.collection_lines: list[str] | None = None  # of plugins, about the collection
        self.finishing = False  # output goes below the results
        self._waited = 0  # seconds that are shown; 0: none are
        self._warnings: list[Any] = []  # those that are shown: not those of this process
        self._held: tuple[Any, Any, io.StringIO] | None = None
        self._late: list[Output] = []  # output of the end, until the results are shown
        self._summaries: list[Summary] = []

    @property
    def reporter(self) -> Any:
        """pytest's terminal reporter; None without one.

        It has no type that says what is used of it.
        """
        return self._config.pluginmanager.get_plugin("terminalreporter")

    def write(self, text: str, *, fresh: bool = False) -> None:
        """Write through the reporter.

        `fresh`: the remote reporter is no longer inside a line of its own.
        """
        if text and self.reporter is not None:
            self.reporter._tw.write(text, flush=True)
            if fresh:
                self.reporter.currentfspath = None

    # -- a cluster that starts ---------------------------------------------------------------------

    def show_wait(self, seconds: float) -> None:
        """Count the seconds of a start on a terminal, in a line that does not stay."""
        reporter = self.reporter
        if reporter is None or not reporter.isatty or self._config.get_verbosity() < 0:
            return
        if int(seconds) > self._waited and (self._waited or not reporter._tw._current_line):
            self._waited = int(seconds)
            reporter.rewrite(f"gpu-cluster: starting     {self._waited} s", erase=True)

    def end_wait(self) -> None:
        """Take that line away."""
        if self._waited:
            self._waited = 0
            writer = self.reporter._tw
            writer.write(f"\r{' ' * (writer.fullwidth - 1)}\r", flush=True)
            writer._current_line = ""

    # -- the beginning -----------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep what the reporter writes, until the remote header lines are above it."""
        reporter = self.reporter
        if reporter is not None:
            self._held = (reporter._tw, reporter._tw._file, io.StringIO())
            reporter._tw._file = self._held[2]

    def release(self) -> str:
        """Let the reporter write again; return what it has written meanwhile."""
        if self._held is None:
            return ""
        (writer, file, buffer), self._held = self._held, None
        writer._file, writer._current_line = file, ""  # nothing of it stands on the terminal yet
        return buffer.getvalue()

    def show_header(self, parts: Iterable[PluginLines]) -> None:
        """Show the header lines of plugins that only the cluster has."""
        reporter = self.reporter
        # One that a plugin has put in the place of pytest's own may have no headers.
        shown = getattr(reporter, "showheader", False) and not reporter.no_header
        if shown:
            for line in self.lines(parts):
                reporter.write_line(line)

    def lines(self, parts: Iterable[PluginLines]) -> Iterator[str]:
        """Return the lines of plugins that do not answer for themselves here."""
        for part in parts:
            if not self._config.pluginmanager.has_plugin(part["plugin"]):
                yield from map(self.paths.text, part["lines"])

    def mix_files(self) -> None:
        """With several workers files finish mixed: a line of results is of no file."""
        if self.reporter is not None and self.workers > 1:
            self.reporter.showfspath = False

    # -- warnings ----------------------------------------------------------------------------------

    def warn(self, record: WarningRecord) -> None:
        """Raise a remote warning here, for every plugin to see."""
        record = self.paths(record)
        try:
            location = from_wire(record["location"])
        except (TypeError, ValueError) as problem:
            raise deserialize.unreadable(record["nodeid"], str(problem)) from problem
        stats = self.reporter.stats if self.reporter is not None else {}
        before = len(stats.get("warnings", ()))
        arguments = {
            "warning_message": deserialize.warning(record),
            "when": record["when"],
            "nodeid": record["nodeid"],
            "location": location,
        }
        self._config.hook.pytest_warning_recorded.call_historic(kwargs=arguments)
        self._warnings += stats.get("warnings", [])[before:]

    def forget_local_warnings(self) -> None:
        """Drop warnings of this process: they are about a pytest that runs nothing."""
        reporter = self.reporter
        if reporter is None:
            return
        if reporter.stats.pop("warnings", None) is not None or self._warnings:
            if self._warnings:
                reporter.stats["warnings"] = list(self._warnings)
            reporter._set_main_color()

    # -- output ------------------------------------------------------------------------------------

    def show_output(self, event: Output) -> None:
        """Show what was written outside of any test, now or below the results."""
        if self.finishing:
            self._late.append(event)
        else:
            self._show_live(event)

    def _show_live(self, event: Output) -> None:
        text = self.paths.text(event.text)
        if self.workers > 1 and event.worker and not self.finishing:
            text = "".join(f"[{event.worker}] {line}" for line in text.splitlines(keepends=True))
            reporter = self.reporter
            inside = reporter is not None and reporter._tw.width_of_current_line
            self.write("\n" if inside else "", fresh=True)
        self.pass_on(text, event.via, fresh=event.fresh)

    def pass_on(self, text: str, via: str, *, fresh: bool) -> None:
        """Write a text with local paths to the stream of its origin: tw, out or err."""
        if via == "tw":
            self.write(text, fresh=fresh)
        else:
            stream = sys.stderr if via == "err" else sys.stdout
            stream.write(text)
            stream.flush()

    def log_file(self, text: str) -> None:
        """Append to the user's --log-file."""
        plugin: Any = self._config.pluginmanager.get_plugin("logging-plugin")
        with contextlib.suppress(AttributeError):
            plugin.log_file_handler.stream.write(text)

    # -- the end -----------------------------------------------------------------------------------

    def interrupted_at(self, place: object) -> None:
        """Show the test's place for a Ctrl-C, not this package's."""
        if self.reporter is not None:
            self.reporter._keyboardinterrupt_memo = place

    def counts(self) -> dict[str, int]:
        """Return the number of tests by the words of the last line; empty without a reporter."""
        stats = self.reporter.stats if self.reporter is not None else {}
        return {word: len(stats[word]) for word in COUNTED if stats.get(word)}

    def keep_summary(self, event: Summary) -> None:
        self._summaries.append(event)
        hook = self._config.hook.pytest_terminal_summary
        silent = {part["plugin"] for part in event.parts if event.worker}
        for implementation in list(hook.get_hookimpls()):
            if implementation.function.__module__ in silent:
                hook._remove_plugin(implementation.plugin)  # private; `unregister` calls it

    def show_late(self) -> None:
        """Show what the remote session wrote at its end."""
        self.finishing = False
        for event in self._late:
            self._show_live(event)

    def show_summary(self) -> None:
        """Show what is said at the end by the user's conftests, and by plugins of the workers."""
        for event in self._summaries:
            if event.worker and self.workers > 1:
                self.write(f"[{event.worker}]\n", fresh=True)
            for part in event.parts:
                if event.worker or not self._config.pluginmanager.has_plugin(part["plugin"]):
                    self.write(self.paths.text(part["text"]), fresh=part["fresh"])


class SummaryWriter:
    """A plugin beside Replay, whose own pytest_terminal_summary surrounds the reporter's."""

    def __init__(self, terminal: Terminal, problems: Sequence[str]) -> None:
        self._terminal, self._problems = terminal, problems

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self._terminal.show_summary()
        for problem in self._problems:
            terminalreporter.write_line(f"gpu-cluster: {problem}", red=True)
