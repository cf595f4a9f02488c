"""What masking costs for the events of a session: on the cluster, and in the report here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pytest_gpu_cluster.agent.masking import JournalMask
from pytest_gpu_cluster.contract.masking import PassedValues
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.report.builder import ReportBuilder
from pytest_gpu_cluster.report.facts import SessionFacts
from tests.benchmarks.drive import BenchError


def masking_cost_s(record: SessionRecord, passed: Mapping[str, str], *, tests: int) -> float:
    """The seconds of CPU that masking takes in a session of so many tests, given passed variables.

    Raises BenchError for a record with fewer events.
    """
    events, request = record.reader().poll(), record.request()
    if request is None or len(events) < tests:
        raise BenchError(f"{len(events)} events in {record.url}")

    def write(journal: JournalMask | None) -> None:
        for event in events:
            event.to_json() if journal is None else journal(event)

    def report(mask: Callable[[str], str]) -> None:
        builder = ReportBuilder(request, SessionFacts(), mask=mask)
        for event in events:
            builder.add(event)

    def run(mask: PassedValues | None) -> None:
        masker = mask.masker() if mask is not None else None
        write(JournalMask(masker) if masker is not None else None)
        report(masker or str)

    return cpu_s(lambda: run(PassedValues(env=passed))) - cpu_s(lambda: run(None))


def cpu_s(work: Callable[[], None]) -> float:
    """The seconds of this process's CPU that some work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began
