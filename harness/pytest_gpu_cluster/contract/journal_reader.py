"""The reading side of a session's journal; `journal` has the format and the writer.

A reader asks for the next segment of each writer that it knows, and lists only to discover writers
and holes. With nothing to read and two writers that costs, in an hour: on `file://` up to 5 polls/s
of the local disk; elsewhere at most 12,000 GET and 840 LIST (0.01 USD on S3); while entries come,
three times as many GET.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from typing import TypeAlias

from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.ids import is_id
from pytest_gpu_cluster.contract.journal import LOCAL, REMOTE, Entry, segment_key
from pytest_gpu_cluster.contract.store import Store

# By writer: the last segment read, the last seq read. A JSON value.
Position: TypeAlias = dict[str, list[int]]


class JournalReader:
    """Follows every writer under `prefix`, each in order; resumes at another reader's `position`.

    An entry is returned once. A hole, or a segment that is not what was written, is a StoreError,
    raised when all that was good before it has been returned.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        position: Position | None = None,
        discover_s: float | None = None,
        holes_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._prefix, self._clock = store, prefix.rstrip("/"), clock
        self._cadence = LOCAL if store.is_local else REMOTE
        self._discover_s = self._cadence.discover if discover_s is None else discover_s
        self._holes_s = self._cadence.holes if holes_s is None else holes_s
        self._read = {writer: (number, seq) for writer, (number, seq) in (position or {}).items()}
        self._discovered = self._searched = -float("inf")
        self._news = clock()  # when the last entry came

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
        if self._read and self._clock() - self._discovered < self._discover_s:
            return
        for writer in filter(is_id, self._store.folders(self._prefix)):
            self._read.setdefault(writer, (0, 0))
        self._discovered = self._clock()

    def _follow(self, writer: str, entries: list[Entry], *, holes: bool) -> None:
        """Add what `writer` has stored since; the position moves with every good segment.

        With `holes`, a segment that is missing before a later one is an error.
        """
        while True:
            number, seq = self._read[writer]
            key = segment_key(self._prefix, writer, number + 1)
            body = self._store.get(key)
            if body is None and holes:
                body = self._look_beyond(key, writer, seq + 1)
            if body is None:
                return
            decoded = self._decode(key, writer, number + 1, seq, body)
            entries.extend(decoded)
            self._read[writer] = (number + 1, seq + len(decoded))

    def _look_beyond(self, key: str, writer: str, seq: int) -> bytes | None:
        """Return the segment at `key` if a later one is stored; None if none is.

        Raises StoreError for a hole: segments are stored in order, so with a later one this one is
        there by now, or lost.
        """
        later = self._store.list(f"{self._prefix}/{writer}", after=key)
        if not later:
            return None
        body = self._store.get(key)
        if body is None:
            raise self._damage(writer, seq, f"{key} is missing though {later[0]} is there")
        return body

    def _decode(self, key: str, writer: str, number: int, seq: int, body: bytes) -> list[Entry]:
        """Return the entries of a segment, which follow on `seq`. Raises StoreError."""
        try:
            header, *entries = [json.loads(line) for line in zlib.decompress(body).split(b"\n")]
            if header["segment"] != number or any(entry["writer"] != writer for entry in entries):
                raise ValueError(f"it holds segment {header['segment']}")
            seqs = [entry["seq"] for entry in entries]
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise self._damage(writer, seq + 1, f"{key} is damaged: {error}") from error
        for expected, actual in enumerate(seqs, seq + 1):
            if actual != expected:
                raise self._damage(writer, expected, f"{key} has event {actual} in its place")
        return entries

    def _damage(self, writer: str, seq: int, reason: str) -> StoreError:
        return StoreError(
            f"the journal in {self._store.url} lost event {seq} of writer {writer}: {reason}",
            remedy="run again; nothing else may write to or delete from the store's sessions/ "
            "during a run",
        )
