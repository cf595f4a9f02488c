"""The reading side of a session's journal; `journal` has the format and the writer.

A reader asks for the next segment of each writer that it knows, and lists only to discover writers
and holes. With nothing to read and two writers that costs, in an hour: on `file://` up to 5 polls/s
of the local disk; elsewhere at most 12,000 GET and 480 LIST (0.01 USD on S3); while entries come,
twice as many GET.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

from pytest_gpu_cluster.contract.bounded import LINES, SEGMENT_BYTES, inflate, parse_json
from pytest_gpu_cluster.contract.errors import StoreError, UnreadableRecordError
from pytest_gpu_cluster.contract.fields import JsonObject, shown
from pytest_gpu_cluster.contract.ids import is_id
from pytest_gpu_cluster.contract.journal import LOCAL, REMOTE, Entry, segment_key
from pytest_gpu_cluster.contract.record_check import is_time
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import damaged

# By writer: the last segment read, the last seq read. A JSON value.
Position: TypeAlias = dict[str, list[int]]

EARLY_S = 60.0  # in which new writers appear: nodes boot, an agent cannot be started


class JournalReader:
    """Follows every writer under `prefix`, each in order; resumes at another reader's `position`.

    Writers that are `expected` are asked for from the first poll on, and others looked for later.

    An entry is returned once. A hole, or a segment that is not what was written, is a StoreError,
    raised when all that was good before it has been returned.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        position: Position | None = None,
        expected: Sequence[str] = (),
        discover_s: float | None = None,
        holes_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._prefix, self._clock = store, prefix.rstrip("/"), clock
        self._cadence = LOCAL if store.is_local else REMOTE
        self._discover_s = discover_s
        self._holes_s = self._cadence.holes if holes_s is None else holes_s
        self._read = {writer: (number, seq) for writer, (number, seq) in (position or {}).items()}
        for writer in expected:
            self._read.setdefault(writer, (0, 0))
        self._current: set[str] = set()  # writers of whom the last poll has read all there was
        self._began = clock()
        self._discovered = self._searched = self._began if expected else -float("inf")
        self._news = self._began  # when the last entry came

    @property
    def position(self) -> Position:
        """The place where the next poll goes on: all that polls have returned is before it."""
        return {writer: [number, seq] for writer, (number, seq) in self._read.items()}

    def poll(self) -> list[Entry]:
        """Return the entries that are stored now and were not returned before.

        Raises StoreError; then nothing is skipped.
        """
        entries: list[Entry] = []
        try:
            self._discover()
            holes = self._clock() - self._searched >= self._holes_s
            for writer in sorted(self._read):
                self._follow(writer, entries, holes=holes)
            if holes:
                self._searched = self._clock()
        except StoreError:
            if not entries:
                raise  # else the next poll comes to it again
        if entries:
            self._news = self._clock()
        return entries

    @property
    def delay_s(self) -> float:
        """Seconds until the next poll is due: a tenth of the silence, within the store's bounds."""
        silence_s = self._clock() - self._news
        return min(max(0.1 * silence_s, self._cadence.active), self._cadence.idle)

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep for `delay_s`, or `timeout_s` where that is less."""
        time.sleep(self.delay_s if timeout_s is None else min(self.delay_s, timeout_s))

    def _discover(self) -> None:
        now, cadence = self._clock(), self._cadence
        is_early = now - self._began < EARLY_S
        own = cadence.discover if is_early else cadence.discover_late
        pause_s = own if self._discover_s is None else self._discover_s
        if self._read and now - self._discovered < pause_s:
            return
        for writer in filter(is_id, self._store.folders(self._prefix)):
            self._read.setdefault(writer, (0, 0))
        self._discovered = self._clock()

    def _follow(self, writer: str, entries: list[Entry], *, holes: bool) -> None:
        """Add what `writer` has stored since; the position moves with every good segment.

        With `holes`, a segment that is missing before a later one is an error. In a distant store,
        one segment is all there can be of a writer that was up to date: the next one would have
        been stored at the same moment.
        """
        was_current = writer in self._current and not self._store.is_local
        self._current.discard(writer)
        while True:
            number, seq = self._read[writer]
            key = segment_key(self._prefix, writer, number + 1)
            body = self._store.get(key, limit_bytes=SEGMENT_BYTES)
            if body is None and holes:
                body = self._look_beyond(key, writer, seq + 1)
            if body is None:
                self._current.add(writer)
                return
            decoded = self._decode(key, writer, number + 1, seq, body)
            entries.extend(decoded)
            self._read[writer] = (number + 1, seq + len(decoded))
            if was_current:
                return

    def _look_beyond(self, key: str, writer: str, seq: int) -> bytes | None:
        """Return the segment at `key` if a later one is stored; None if none is.

        Raises StoreError for a hole: segments are stored in order, so with a later one this one is
        there by now, or lost.
        """
        later = self._store.list(f"{self._prefix}/{writer}", after=key)
        if not later:
            return None
        body = self._store.get(key, limit_bytes=SEGMENT_BYTES)
        if body is None:
            reason = f"{key} is missing though {later[0]} is there"
            raise self._damage(writer, seq, reason, StoreError)
        return body

    def _decode(self, key: str, writer: str, number: int, seq: int, body: bytes) -> list[Entry]:
        """Return the entries of a segment, which follow on `seq`. Raises StoreError."""
        try:
            header, *entries = _lines(body)
            if header.get("segment") != number or any(e.get("writer") != writer for e in entries):
                raise ValueError(f"it holds segment {shown(header.get('segment'))}")
        except ValueError as error:
            raise self._damage(writer, seq + 1, f"{key} is damaged: {error}") from error
        for expected, entry in enumerate(entries, seq + 1):
            if entry.get("seq") != expected:
                reason = f"{key} has event {shown(entry.get('seq'))} in its place"
                raise self._damage(writer, expected, reason)
            if not isinstance(entry.get("kind"), str) or not is_time(entry.get("t")):
                raise self.damaged(entry, "its kind is no text, or its time no number")
        return entries

    def damaged(self, entry: Entry, problem: Exception | str) -> UnreadableRecordError:
        """Return the error for an event that this version cannot read."""
        place = f"event {entry.get('seq')} of {self._prefix}/{entry.get('writer')}"
        return damaged(self._store.url, place, problem)

    def _damage(
        self, writer: str, seq: int, reason: str, kind: type[StoreError] = UnreadableRecordError
    ) -> StoreError:
        return kind(
            f"the journal in {self._store.url} lost event {seq} of writer {writer}: {reason}",
            remedy="run again; nothing else may write to or delete from the store's sessions/ "
            "during a run",
        )


def _lines(body: bytes) -> list[JsonObject]:
    """Return the JSON objects of a segment. Raises ValueError."""
    lines = inflate(body, limit_bytes=SEGMENT_BYTES)
    if lines.count(b"\n") > LINES:
        raise ValueError(f"it has more than {LINES:,} lines")
    values = [parse_json(line, limit_bytes=SEGMENT_BYTES) for line in lines.split(b"\n")]
    for value in values:
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, got {shown(value)}")
    return cast(list[JsonObject], values)
