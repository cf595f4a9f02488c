"""A session's ordered events, in the store: writers append, readers follow and resume.

`<prefix>/<writer>/<n:08d>`, n from 1, is a segment: zlib-compressed lines of JSON, first a header
(its number, the writer's nonce), then one event a line. A segment is stored once and never changed.
The events of one writer are numbered 1, 2, 3, … without a hole (`seq`); nothing is said about the
order between writers. The reader is in `journal_reader`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import zlib
from collections import deque
from enum import Enum, auto
from pathlib import Path
from typing import TypeAlias

from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.fields import JsonObject, JsonValue
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.ids import check_id
from pytest_gpu_cluster.contract.store import Store

# An event as it is stored: v, seq, t (unix seconds on the writer's clock, for display), kind,
# writer, and the kind's own keys.
Entry: TypeAlias = JsonObject

_encoder = json.JSONEncoder(separators=(",", ":"))
VERSION = 1
RESERVED = {"v", "seq", "t", "kind", "writer"}
SEGMENT_BYTES = 4 << 20  # of lines, before compression; a bigger one is cut in two
MEMORY_BYTES = 32 << 20  # compressed segments that wait in memory; more go to the spool
SPOOL_BYTES = 1 << 30
AWAY_S = 60.0  # when the oldest event has waited this long for the store, the writer is stalled
RETRY_S = (0.2, 5.0)  # first and longest pause after a failed put


@dataclass(frozen=True)
class _Cadence:
    """Seconds, for local stores and for the others."""

    flush: float  # between two segments of a busy writer
    linger: float  # for what follows the first event of an idle one: one test ends, the next begins
    active: float  # between two polls when something was just read …
    idle: float  # … and at most; in between a tenth of the silence
    discover: float  # between two looks for new writers in the first minute …
    discover_late: float  # … and after it
    holes: float  # between two looks beyond a missing segment


LOCAL = _Cadence(
    flush=0.05, linger=0.0, active=0.02, idle=0.2, discover=0.2, discover_late=0.2, holes=2.0
)
# The writer's and the reader's part of a result's way are within its budget of 1 s together. What a
# test costs is one PUT and one or two GET.
REMOTE = _Cadence(
    flush=0.3, linger=0.05, active=0.4, idle=0.6, discover=5.0, discover_late=15.0, holes=60.0
)


def segment_key(prefix: str, writer: str, number: int) -> str:
    return f"{prefix}/{writer}/{number:08d}"


@dataclass
class _Segment:
    """Lines that were cut off to be stored."""

    number: int
    last_seq: int
    body: bytes | None  # None: it is in `spooled`
    spooled: Path
    size: int
    cut: float  # monotonic


class _Backlog:
    """Events that are not stored yet: lines, and segments in order. The writer's lock guards it."""

    def __init__(self, writer: str, spool: Path | None, memory_bytes: int) -> None:
        self.writer, self.spool, self.memory_bytes = writer, spool, memory_bytes
        self.nonce = os.urandom(8).hex()
        self.lines: list[bytes] = []
        self.lines_bytes = 0
        self.segments: deque[_Segment] = deque()  # the first may be on its way
        self.number = self.seq = 0  # of the last segment, of the last line

    @property
    def size(self) -> int:
        return self.lines_bytes + sum(segment.size for segment in self.segments)

    def add(self, line: bytes) -> None:
        self.seq += 1
        self.lines.append(line)
        self.lines_bytes += len(line)
        if self.lines_bytes >= SEGMENT_BYTES:
            self.cut()

    def cut(self) -> None:
        """Make the lines a segment; it goes to the spool when memory is full."""
        self.number += 1
        header = json.dumps({"segment": self.number, "nonce": self.nonce}).encode()
        body = zlib.compress(b"\n".join([header, *self.lines]), 3)
        spooled = (self.spool or Path()) / f"{self.writer}-{self.number:08d}"
        segment = _Segment(self.number, self.seq, body, spooled, len(body), time.monotonic())
        in_memory = sum(each.size for each in self.segments if each.body is not None)
        if self.spool and in_memory + len(body) > self.memory_bytes:
            # On a full disk it stays in memory, within the same bound.
            with contextlib.suppress(OSError):
                self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
                spooled.write_bytes(body)
                segment.body = None
        self.segments.append(segment)
        self.lines, self.lines_bytes = [], 0

    def drop_first(self) -> None:
        """Forget the oldest segment, which is stored."""
        segment = self.segments.popleft()
        if segment.body is None:
            segment.spooled.unlink(missing_ok=True)


class _Stage(Enum):
    """The life of a writer."""

    OPEN = auto()
    REFUSED = auto()  # the store has a segment of another writer with this name
    CLOSING = auto()  # the last events are being stored
    CLOSED = auto()  # the thread has given up


class JournalWriter:
    """Appends events; a thread stores them.

    `writer` is this process alone, for ever: a restarted one needs a new name. `append` never waits
    for the store. What the store did not take yet waits in memory, then in the directory `spool`
    (made if needed), each bounded. `stalled` is True when it is nearly full or the store was away
    for `away_s`: start nothing new then.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        writer: str,
        *,
        interval_s: float | None = None,
        spool: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        spool_bytes: int = SPOOL_BYTES,
        away_s: float = AWAY_S,
    ) -> None:
        self._store, self._prefix = store, prefix.rstrip("/")
        self.writer = check_id(writer, "writer")
        cadence = LOCAL if store.is_local else REMOTE
        self._interval_s = cadence.flush if interval_s is None else interval_s
        self._linger_s = cadence.linger
        self._away_s = away_s
        self._full_bytes = memory_bytes + (spool_bytes if spool else 0)
        self._changed = threading.Condition()  # guards everything below
        self._backlog = _Backlog(writer, spool, memory_bytes)
        self._stage = _Stage.OPEN
        self._stored_seq = 0
        self._hurry = False  # a flush waits
        self._error: StoreError | None = None  # the last failure; None after a success
        self._thread = threading.Thread(target=self._run, name=f"journal-{writer}", daemon=True)
        self._thread.start()

    def append(self, kind: str, **data: JsonValue) -> int:
        """Add one event and return its seq.

        Raises TypeError for what is not JSON, StoreError when no more fits.
        """
        if clash := RESERVED & data.keys():
            raise ValueError(f"event {kind}: {', '.join(sorted(clash))} belongs to the journal")
        with self._changed:
            if self._stage in (_Stage.CLOSING, _Stage.CLOSED):
                raise ValueError(f"journal {self._prefix}/{self.writer} is closed")
            if self._stage is _Stage.REFUSED or self._backlog.size > 2 * self._full_bytes:
                raise self._failure("no more events can be held")
            head: Entry = {
                "v": VERSION,
                "seq": self._backlog.seq + 1,
                "t": round(time.time(), 6),
                "kind": kind,
                "writer": self.writer,
            }
            self._backlog.add(_encoder.encode(head | data).encode())
            self._changed.notify_all()
            return self._backlog.seq

    @property
    def stalled(self) -> bool:
        """True when no new work should start: the spool is full, or the store was away too long."""
        with self._changed:
            segments = self._backlog.segments
            late = bool(segments) and time.monotonic() - segments[0].cut > self._away_s
            return self._gives_up or late or self._backlog.size > self._full_bytes

    @property
    def _gives_up(self) -> bool:
        """True when nothing more is going to be stored."""
        return self._stage in (_Stage.REFUSED, _Stage.CLOSED)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until every event appended so far is stored. Raises StoreError for a longer wait."""
        with self._changed:
            last, self._hurry = self._backlog.seq, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stored_seq >= last or self._gives_up, timeout_s)
            self._hurry = False
            if self._stored_seq < last:
                raise self._failure(
                    f"{last - self._stored_seq} events could not be stored within {timeout_s:g} s"
                )

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush, and end the thread; quiet when repeated.

        After a StoreError the events are in the spool or lost.
        """
        with self._changed:
            if self._stage in (_Stage.CLOSING, _Stage.CLOSED):
                return
            if self._stage is _Stage.OPEN:
                self._stage = _Stage.CLOSING
        try:
            self.flush(timeout_s)
        finally:
            with self._changed:
                self._stage = _Stage.CLOSED
                self._changed.notify_all()
            self._thread.join(1.0)

    def _failure(self, problem: str) -> StoreError:
        reason = f": {self._error.what}" if self._error else ""
        remedy = (
            self._error.remedy
            if self._error
            else "check the network and the store's health, then run again"
        )
        name = f"journal {self._prefix}/{self.writer} in {self._store.url}"
        failure = StoreError(f"{name}: {problem}{reason}", remedy=remedy)
        failure.__cause__ = self._error
        return failure

    def _run(self) -> None:
        pause_s, last = RETRY_S[0], -self._interval_s
        while (segment := self._next(last)) is not None:
            try:
                body = segment.body if segment.body is not None else segment.spooled.read_bytes()
                key = segment_key(self._prefix, self.writer, segment.number)
                created = self._store.create(key, body)
            except (StoreError, OSError) as error:
                self._on_failure(error, pause_s)
                pause_s = min(2 * pause_s, RETRY_S[1])
                continue
            pause_s, last = RETRY_S[0], time.monotonic()
            self._on_answer(segment, created=created)

    def _next(self, last: float) -> _Segment | None:
        """Return the next segment to store, when it is time for it; None at the end."""
        backlog = self._backlog
        with self._changed:
            self._changed.wait_for(lambda: backlog.lines or backlog.segments or self._gives_up)
            last = max(last, time.monotonic() + self._linger_s - self._interval_s)
            while not (backlog.segments or self._hurry or self._gives_up):
                pause_s = last + self._interval_s - time.monotonic()
                if pause_s <= 0:
                    break
                self._changed.wait(pause_s)
            if self._gives_up:
                return None
            if not backlog.segments:
                backlog.cut()
            return backlog.segments[0]

    def _on_failure(self, error: StoreError | OSError, pause_s: float) -> None:
        """Remember a failed attempt, and wait before the next."""
        if not isinstance(error, StoreError):
            error = StoreError(str(error), remedy="free the disk")
        with self._changed:
            self._error = error
            self._changed.wait_for(lambda: self._gives_up, pause_s)

    def _on_answer(self, segment: _Segment, *, created: bool) -> None:
        with self._changed:
            if created:
                self._backlog.drop_first()
                self._stored_seq, self._error = segment.last_seq, None
            else:
                name = f"segment {segment.number} of {self._prefix}/{self.writer}"
                self._error = StoreError(
                    f"{name} is already there, from another writer",
                    remedy="give every writer of a journal its own name",
                )
                if self._stage is not _Stage.CLOSED:
                    self._stage = _Stage.REFUSED
            self._changed.notify_all()
