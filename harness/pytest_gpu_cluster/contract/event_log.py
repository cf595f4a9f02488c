"""The journal of a session as typed events: what writes it, and what follows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from pytest_gpu_cluster.contract.events import Event
from pytest_gpu_cluster.contract.fields import FieldError, JsonObject
from pytest_gpu_cluster.contract.journal import Entry, JournalWriter
from pytest_gpu_cluster.contract.journal_reader import JournalReader

EventMask: TypeAlias = Callable[[Event], JsonObject]


class EventWriter:
    """Appends a writer's events to a session's journal.

    `mask` returns the JSON object of an event as others may read it.
    """

    def __init__(self, journal: JournalWriter, mask: EventMask | None = None) -> None:
        self._journal, self._mask = journal, mask

    def append(self, event: Event) -> int:
        """Add one event and return its seq.

        Raises StoreError when no more fits, ValueError after `close`.
        """
        body = event.to_json() if self._mask is None else self._mask(event)
        return self._journal.append(event.kind, **body)

    @property
    def stalled(self) -> bool:
        """True when no new work should start: the spool is full, or the store was away too long."""
        return self._journal.stalled

    def close(self, timeout_s: float = 30.0) -> None:
        """Store what was appended, and end. Raises StoreError when that took longer."""
        self._journal.close(timeout_s)


class EventReader:
    """Follows a session's journal; see JournalReader."""

    def __init__(self, journal: JournalReader) -> None:
        self._journal = journal
        self._entries: deque[Entry] = deque()  # read, and not yet returned

    def poll(self) -> list[Event]:
        """Return the events that are new.

        Raises StoreError: for an event that cannot be read, when all before it have been returned.
        """
        if not self._entries:
            self._entries.extend(self._journal.poll())
        events: list[Event] = []
        while self._entries:
            entry = self._entries[0]
            try:
                events.append(Event.of(entry))
            except FieldError as problem:
                if events:
                    break
                raise self._journal.damaged(entry, problem) from problem
            self._entries.popleft()
        return events

    def wait(self) -> None:
        """Sleep until it is time for the next poll."""
        self._journal.wait()
