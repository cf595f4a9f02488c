"""The report of a session that another process ran, as far as the store has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.fields import FieldError, JsonObject
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.report.model import Delta


class RecordedEvents:
    """The events of a record.

    A journal with a hole ends there, and the hole is how the session ended.
    """

    def __init__(self, record: SessionRecord) -> None:
        self._record = record
        self.problem: HarnessError | None = None

    def __iter__(self) -> Iterator[Event]:
        reader = self._record.reader()
        try:
            while events := reader.poll():
                yield from events
        except HarnessError as problem:
            self.problem = problem

    def ending(self) -> Ending:
        """Return how the session ended, after the events were read. Raises StoreError."""
        if (problem := self.problem) is not None:
            return Ending(
                failure_class=problem.failure_class, message=problem.what, remedy=problem.remedy
            )
        return self._record.result() or Ending()


def recorded_delta(summary: JsonObject) -> Delta | None:
    """Return the delta that the client had recorded.

    By now the branch's last session may be this one.
    """
    with suppress(FieldError):  # there is none, or another version wrote it: as if there were none
        return Delta.from_json(summary.get("delta"))
    return None
