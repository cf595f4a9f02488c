"""Sinks: whoever is told of a session's events and of its report. One line in SINKS for each.

A sink is a subclass of `Sink`. `event` is called for every event, in order; `finish` once, after
teardown, with the final report. A sink that raises is dropped: it changes nothing of the run, and
the terminal says so. A sink from outside this package is an entry point of the group
`pytest_gpu_cluster.sinks`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.masking import client_masker
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.request import CI, SessionRequest
from pytest_gpu_cluster.contract.settings import Settings
from pytest_gpu_cluster.report import delta
from pytest_gpu_cluster.report.builder import ReportBuilder
from pytest_gpu_cluster.report.facts import SessionFacts
from pytest_gpu_cluster.report.model import Delta, Report, ReportContext

GROUP = "pytest_gpu_cluster.sinks"
# The order matters: `report.troubles` holds what the earlier ones could not do.
SINKS = (
    "pytest_gpu_cluster.host.progress:Progress",
    "pytest_gpu_cluster.report.files:JUnitFile",
    "pytest_gpu_cluster.publish.sink:CIHost",
    "pytest_gpu_cluster.report.files:Summaries",
)


@dataclass(frozen=True, kw_only=True)
class SinkContext:
    """The session and the world, as far as a sink may need them."""

    settings: Settings
    environ: Mapping[str, str] = field(repr=False)
    root: Path  # pytest's rootdir
    record: SessionRecord
    report: ReportContext
    ci: CI | None  # None: on a laptop
    write: Callable[[str], None]  # a line for the terminal, which is marked as this plugin's
    echo: Callable[[str], None]  # a line for the output as it is, for a host that reads it
    live: bool = True  # False: the events come from a stored record
    verbosity: int = 0  # pytest's
    already_published: bool = False  # the host has the files and output lines of this session
    refused: tuple[str, ...] = ()  # what its record names and the CI host is not told, with remedy


@dataclass(frozen=True, kw_only=True)
class Closing:
    """The last words of a sink."""

    lines: tuple[str, ...] = ()  # for the terminal
    troubles: tuple[str, ...] = ()  # what could not be reported, with the remedy; for the report

    def __add__(self, other: Closing) -> Closing:
        return Closing(lines=self.lines + other.lines, troubles=self.troubles + other.troubles)


Current = Callable[[], Report]  # returns the report as it stands


class Sink:
    """Whoever wants to know of a session. What a sink does not override does nothing."""

    uses_report: ClassVar[bool] = True  # False: the report need not be built for this one

    @classmethod
    def create(cls, context: SinkContext, current: Current) -> Sink | None:
        """Return the sink of a session that begins; None where nobody wants to know."""
        raise NotImplementedError

    def event(self, event: Event) -> None:
        """Take one event."""

    def ended(self, report: Report) -> None:
        """Take the report after teardown; a plugin may still change the exit status."""

    def finish(self, report: Report) -> Closing:
        """Take the final report. Called only where some sink uses the report."""
        return Closing()

    def last_output(self, report: Report) -> Sequence[str]:
        """Return lines for the very end of the output, as they are; also after this has raised."""
        return ()


def registered() -> Iterator[tuple[str, Callable[[], type[Sink]]]]:
    """Yield every sink's name and what loads its class."""
    for target in SINKS:
        yield target.partition(":")[2], partial(_load, target)
    for point in entry_points(group=GROUP):
        yield point.name, point.load


def _load(target: str) -> type[Sink]:
    module, _, name = target.partition(":")
    sink: type[Sink] = getattr(importlib.import_module(module), name)
    return sink


class Sinks:
    """All sinks of a session, the report that they are told, and the facts that everybody reads."""

    def __init__(self, context: SinkContext, request: SessionRequest) -> None:
        self.facts = SessionFacts()
        self._context = context
        self._mask = client_masker(context.environ, context.settings.secret_env)
        self._builder = ReportBuilder(request, self.facts, mask=self._mask)
        self._troubles: list[str] = []
        self._sinks: list[Sink] = []
        for name, load in registered():
            try:
                sink = load().create(context, self.current)
            except Exception as problem:  # noqa: BLE001 - a sink must not end the run
                self._drop(name, problem)
            else:
                self._sinks += [sink] if sink is not None else []
        self._created = self._sinks.copy()  # those too that are dropped later
        self._final: Report | None = None
        self._reported = not context.live or any(sink.uses_report for sink in self._sinks)

    def current(self) -> Report:
        """Return the report as it stands."""
        return self._builder.report(self._context.report)

    def event(self, event: Event) -> None:
        """Tell every sink of an event."""
        self.facts.add(event)
        if self._reported:
            self._build(event)
        for sink in self._sinks.copy():
            try:
                sink.event(event)
            except Exception as problem:  # noqa: BLE001 - a sink must not end the run
                self._sinks.remove(sink)
                self._drop(type(sink).__name__, problem)

    def report(self, ending: Ending, *, compared: Delta | None = None) -> Report:
        """Return the final report. `compared`: how an earlier report compared this session."""
        report = self._builder.report(self._context.report, ending)
        if compared is None:
            ci, suite = self._context.ci, self._context.settings.reports.suite
            compared = delta.against_branch(report, self._context.record.store, ci, suite)
        return replace(report, delta=compared)

    def finish(self, ending: Ending, *, compared: Delta | None = None) -> Closing:
        """Tell every sink the final report."""
        closing = Closing(lines=tuple(self._troubles), troubles=tuple(self._troubles))
        if not self._reported:
            return closing
        try:
            report = self.report(ending, compared=compared)
        except Exception as problem:  # noqa: BLE001 - no report must not end the run
            return closing + self._trouble("the report", problem)
        for sink in self._sinks:
            try:
                closing += sink.finish(replace(report, troubles=closing.troubles))
            except Exception as problem:  # noqa: BLE001 - a sink must not end the run
                closing += self._trouble(type(sink).__name__, problem)
        self._final = replace(report, troubles=closing.troubles)
        return closing

    def ended(self, ending: Ending) -> None:
        """Tell every sink the report as it is after teardown."""
        if not self._reported:
            return
        for sink in self._sinks.copy():
            try:
                sink.ended(self.report(ending))
            except Exception as problem:  # noqa: BLE001 - a sink must not end the run
                self._sinks.remove(sink)
                self._drop(type(sink).__name__, problem)

    def last_output(self) -> list[str]:
        """Return the lines for the very end of the output, of dropped sinks too."""
        lines: list[str] = []
        for sink in self._created:
            with contextlib.suppress(Exception):  # nothing is left that could say so
                lines += sink.last_output(self._final or self.current())
        return lines

    def _trouble(self, name: str, problem: Exception) -> Closing:
        text = self._drop(name, problem)
        return Closing(lines=(text,), troubles=(text,))

    def _build(self, event: Event) -> None:
        try:
            self._builder.add(event)
        except Exception as problem:  # noqa: BLE001
            # Whatever a test or a plugin put into it, the run goes on.
            self._add_trouble(
                f"an event of kind {event.kind} could not be taken into the report:"
                f" {type(problem).__name__}: {problem}"
            )

    def _drop(self, name: str, problem: Exception) -> str:
        return self._add_trouble(
            f"the report failed in {name}: {type(problem).__name__}: {problem}"
        )

    def _add_trouble(self, text: str) -> str:
        masked = self._mask(text)
        if masked not in self._troubles:
            self._troubles.append(masked)
        return masked
