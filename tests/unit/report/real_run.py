"""A run of a real pytest, whose events make the reports of many tests."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster.contract.events import Event, TestFinished
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.record import Ending
from pytest_gpu_cluster.report.model import Report, ReportContext
from tests.unit.report.events import EventReport, request

LINK = (
    "https://ci.example.com/acme/aerial/pipelines/results/417"
    "/steps/%7B5f2f7a1c-0d0e-4f6e-9a53-2f1f0f6f7a11%7D"
)
CONTEXT = ReportContext(suite="gpu-cluster", link=LINK)
FAILED = Ending(exit_code=1)


@dataclass(frozen=True)
class RealRun:
    """The tree of a real run, its events, and pytest's own JUnit file with places in it."""

    project: Path
    events: tuple[Event, ...]
    theirs: ET.Element

    def builder(self, *, environ: Mapping[str, str] | None = None, prefix: str = "") -> EventReport:
        """Return a report without events, which masks the secrets of `environ`."""
        mask = masker(environ or {})
        return EventReport(request(origin=str(self.project), prefix=prefix), mask=mask)

    def report(
        self,
        ending: Ending = FAILED,
        *,
        environ: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> Report:
        builder = self.builder(environ=environ, prefix=prefix)
        builder.add(*self.events)
        return builder.report(CONTEXT, ending)

    def half(self) -> EventReport:
        """Return a report of the first half of the events."""
        builder = self.builder()
        builder.add(*self.events[: len(self.events) // 2])
        return builder

    def line(self, file: str, number: int) -> str:
        return (self.project / file).read_text().splitlines()[number - 1].strip()

    def without(self, *files: str) -> RealRun:
        """Return the run without the results of the tests in these files."""
        events = (
            event
            for event in self.events
            if not isinstance(event, TestFinished) or event.nodeid.partition("::")[0] not in files
        )
        return dataclasses.replace(self, events=tuple(events))
