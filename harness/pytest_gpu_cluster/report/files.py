"""Files of a report: JUnit, JSON and Markdown for the CI host, and the summary in the store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.contract.ids import is_id
from pytest_gpu_cluster.contract.masking import client_masker
from pytest_gpu_cluster.contract.record import branch_key
from pytest_gpu_cluster.report import delta, junit, render
from pytest_gpu_cluster.report.model import Report, ReportContext
from pytest_gpu_cluster.report.sinks import Closing, Current, Sink, SinkContext

MARKDOWN_CHARS = 500_000


class ResultsDirectory:
    """`results-dir`, where a file of this suite is replaced as a whole or stays as it was."""

    def __init__(self, directory: Path, suite: str) -> None:
        self._directory, self._suite = directory, suite

    @property
    def stem(self) -> Path:
        return self._directory / self._suite

    def remove(self, suffix: str) -> None:
        with contextlib.suppress(OSError):
            self._path(suffix).unlink()

    def write(self, suffix: str, data: bytes) -> str:
        """Write a file; return the reason of a failure, or "".

        A report that fails changes nothing of the run.
        """
        path = self._path(suffix)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as problem:
            return f"{path} could not be written: {problem.strerror}"
        return ""

    def _path(self, suffix: str) -> Path:
        return self._directory / f"{self._suite}.{suffix}"


def results_directory(context: SinkContext) -> ResultsDirectory | None:
    """Return where files go; None where nobody wants them."""
    reports = context.settings.reports
    if not reports.results_dir:
        return None
    return ResultsDirectory(context.root / reports.results_dir, reports.suite)


class JUnitFile(Sink):
    """The JUnit file. Until the session has ended it says that nothing has passed."""

    def __init__(self, directory: ResultsDirectory, *, strict: bool) -> None:
        self._directory, self._strict = directory, strict

    @classmethod
    def create(cls, context: SinkContext, current: Current) -> JUnitFile | None:
        """Take files of an earlier run away: none of them may be read as this one's."""
        directory = results_directory(context)
        if directory is None:
            return None
        sink = cls(directory, strict=context.settings.reports.junit_strict)
        if context.live:
            for suffix in ("json", "md"):
                directory.remove(suffix)
            sink._write(current())
        return sink

    def ended(self, report: Report) -> None:
        self._write(report)

    def finish(self, report: Report) -> Closing:
        trouble = self._write(report)
        return Closing(lines=(trouble,), troubles=(trouble,)) if trouble else Closing()

    def _write(self, report: Report) -> str:
        return self._directory.write("xml", junit.write(report, strict=self._strict))


class Summaries(Sink):
    """JSON and Markdown beside the JUnit file, the record's summary, and the branch's results."""

    def __init__(self, context: SinkContext) -> None:
        self._context = context

    @classmethod
    def create(cls, context: SinkContext, current: Current) -> Summaries | None:
        if context.ci is None and not context.settings.reports.results_dir:
            return None  # on a laptop there is nobody to tell
        return cls(context)

    def finish(self, report: Report) -> Closing:
        closing = self._write(report)
        self._put(report)
        return closing

    def _write(self, report: Report) -> Closing:
        directory = results_directory(self._context)
        if directory is None:
            return Closing()
        markdown = render.markdown(report, limit=MARKDOWN_CHARS)
        troubles = tuple(
            trouble
            for suffix, text in (("json", render.json_text(report)), ("md", markdown))
            if (trouble := directory.write(suffix, text.encode()))
        )
        if troubles:
            return Closing(lines=troubles, troubles=troubles)
        return Closing(lines=(f"result files: {directory.stem}.xml, .json and .md",))

    def _put(self, report: Report) -> None:
        """A pull request's results are not its branch's: its code is not on it yet."""
        record, ci = self._context.record, self._context.ci
        with contextlib.suppress(HarnessError):  # a store that is away is said elsewhere
            record.put_summary(render.json_text(report))
            if ci is not None and ci.branch and not ci.pull_request:
                results = delta.results_of(report)
                if results is not None:
                    record.store.put(
                        branch_key(ci.branch, self._context.settings.reports.suite), results
                    )


def write_refusal(root: Path, environ: Mapping[str, str], problem: HarnessError) -> None:
    """Write a JUnit file that says why the settings could not be read.

    It lies where the settings would have put it.
    """
    folder = environ.get("GPU_CLUSTER_RESULTS_DIR", "")
    suite = environ.get("GPU_CLUSTER_SUITE", "")
    inside = folder and not folder.startswith(("/", "~")) and ".." not in folder.split("/")
    directory = ResultsDirectory(
        root / (folder if inside else "test-results"),
        suite if is_id(suite) else "gpu-cluster",
    )
    mask = client_masker(environ)
    report = Report(
        session="none",
        context=ReportContext(suite=directory.stem.name),
        verdict=FailureClass.REQUEST,
        message=mask(problem.what),
        remedy=mask(problem.remedy),
    )
    directory.write("xml", junit.write(report))
