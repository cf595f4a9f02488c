"""A run of a real pytest, whose events make the reports of many tests."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_gpu_cluster.contract.codec import Event
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.report.builder import ReportBuilder
from pytest_gpu_cluster.report.model import Ending, Report, ReportContext
from tests.unit.report.events import request

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

    def builder(
        self, *, environ: Mapping[str, str] | None = None, prefix: str = ""
    ) -> ReportBuilder:
        """Return a builder without events, which masks the secrets of `environ`."""
        mask = masker(environ or {})
        return ReportBuilder(request(origin=str(self.project)), mask=mask, prefix=prefix)

    def report(
        self,
        ending: Ending = FAILED,
        *,
        environ: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> Report:
        builder = self.builder(environ=environ, prefix=prefix)
        for event in self.events:
            builder.add(event)
        return builder.report(CONTEXT, ending)

    def half(self) -> ReportBuilder:
        """Return a builder with the first half of the events."""
        builder = self.builder()
        for event in self.events[: len(self.events) // 2]:
            builder.add(event)
        return builder

    def line(self, file: str, number: int) -> str:
        return (self.project / file).read_text().splitlines()[number - 1].strip()

    def without(self, *files: str) -> RealRun:
        """Return the run without the results of the tests in these files."""
        events = (
            event
            for event in self.events
            if event.kind != "test_finished" or event["nodeid"].partition("::")[0] not in files
        )
        return dataclasses.replace(self, events=tuple(events))
