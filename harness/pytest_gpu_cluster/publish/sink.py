"""The CI host as a sink: it hears of the session's start, of its progress, and of its end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.masking import client_masker
from pytest_gpu_cluster.publish import Publisher, publisher
from pytest_gpu_cluster.publish.sender import WITHIN_S, BackgroundSender
from pytest_gpu_cluster.report.model import Report
from pytest_gpu_cluster.report.sinks import Closing, Current, Sink, SinkContext

PROGRESS_S = 30.0  # between two reports on the way
CANCELLED_S = 8.0  # a host that cancels a step kills it soon


class CIHost(Sink):
    """Publishes to the CI host in the background; only the end waits for it, and not for long."""

    def __init__(self, context: SinkContext, host: Publisher, current: Current) -> None:
        self._context, self._host, self._current = context, host, current
        self._mask = client_masker(context.environ, context.settings.secret_env)
        self._sender: BackgroundSender | None = None
        self._published_at = 0.0

    @classmethod
    def create(cls, context: SinkContext, current: Current) -> CIHost | None:
        if context.ci is None:
            return None
        host = publisher(context.ci, context.settings, context.environ)
        return cls(context, host, current) if host is not None else None

    def event(self, event: Event) -> None:
        if not self._context.live:
            return
        if self._sender is None:
            for line in self._host.opening():
                self._context.echo(line)
            self._sender = BackgroundSender(self._host)
            self._sender.submit(self._host.started(self._current()))
        elif time.monotonic() - self._published_at > PROGRESS_S:
            self._sender.submit(self._host.progressed(self._current()))
        else:
            return
        self._published_at = time.monotonic()

    def finish(self, report: Report) -> Closing:
        """Publish the final report. Bounded, and never raises for a host."""
        within_s = CANCELLED_S if report.verdict == "cancelled" else WITHIN_S
        sender = self._sender or BackgroundSender(self._host)
        targets, problems = sender.deliver(self._host.finished(report), within_s=within_s)
        name = self._host.name
        troubles = tuple(
            self._mask(text) for text in (*self._context.refused, *self._host.troubles, *problems)
        )
        lines = [f"told {name}: {', '.join(targets)}"] if targets else []
        lines += [*(f"{name}: {note}" for note in self._host.notes), *troubles]
        if self._context.already_published:
            return Closing(lines=tuple(lines), troubles=troubles)
        report = dataclasses.replace(report, troubles=(*report.troubles, *troubles))
        lines += self._write_files(report)
        return Closing(lines=tuple(lines), troubles=troubles)

    def last_output(self, report: Report) -> Sequence[str]:
        return () if self._context.already_published else self._host.closing(report)

    def _write_files(self, report: Report) -> list[str]:
        """Write the files that the host reads, and return what could not be written."""
        folder = self._context.settings.reports.results_dir
        directory = self._context.root / folder if folder else None
        problems = []
        for path, text, append in self._host.files(report, directory):
            try:
                _write(path, text, append=append)
            except OSError as problem:
                problems.append(f"{path} could not be written: {problem.strerror}")
        return problems


def _write(path: Path, text: str, *, append: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", encoding="utf-8") as file:
        file.write(text)
