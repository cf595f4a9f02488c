"""A session's ordered events, in the store: writers append, readers follow and resume.

`<prefix>/<writer>/<n:08d>`, n from 1, is a segment: zlib-compressed lines of JSON, first a header (its number, the
writer's nonce), then one event a line. A segment is stored once and never changed. The events of one writer are
numbered 1, 2, 3, … without a hole (`seq`); nothing is said about the order between writers.

A reader asks for the next segment of each writer it knows and lists only to find new writers and holes. What that
costs with nothing to read and two writers, an hour: on `file://` up to 5 polls/s of the local disk; elsewhere
at most 12,000 GET and 840 LIST (0.01 USD on S3); while events come, three times as many GET.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.store import Store

Event = dict[
    str, Any
]  # v, seq, t (unix seconds on the writer, for display), kind, writer, and the kind's own keys
Position = dict[str, list[int]]  # writer -> [last segment read, last seq read]; a JSON value

_encoder = json.JSONEncoder(separators=(",", ":"))
VERSION = 1
RESERVED = {"v", "seq", "t", "kind", "writer"}
SEGMENT_BYTES = 4 << 20  # of lines, before compression; a bigger one is cut in two
MEMORY_BYTES = 32 << 20  # compressed segments that wait in memory; more go to the spool
SPOOL_BYTES = 1 << 30
AWAY_S = 60.0  # the oldest event has waited this long for the store: say so
RETRY_S = (0.2, 5.0)  # first and longest pause after a failed put


@dataclass(frozen=True)
class _Cadence:
    """Seconds, for local stores and for the others."""

    flush: float  # between two segments of a busy writer; an idle one stores at once
    active: float  # between two polls when something was just read …
    idle: float  # … and at most; in between a tenth of the silence
    discover: float  # between two looks for new writers
    holes: float  # between two looks beyond a missing segment


LOCAL = _Cadence(flush=0.05, active=0.02, idle=0.2, discover=0.2, holes=2.0)
REMOTE = _Cadence(flush=0.3, active=0.2, idle=0.6, discover=5.0, holes=60.0)


def _key(prefix: str, writer: str, number: int) -> str:
    return f"{prefix}/{writer}/{number:08d}"


@dataclass
class _Segment:
    number: int
    last_seq: int
    body: bytes | None  # None: it is in `spooled`
    spooled: Path
    size: int
    cut: float  # monotonic


class JournalWriter:
    """Appends events; a thread stores them. `writer` is this process alone, for ever: a restarted one needs a new name.

    `append` never waits for the store. What the store did not take yet waits in memory, then in the directory `spool`
    (made if needed), each bounded. `stalled` says that it is nearly full or that the store was away for `away_s`:
    start nothing new then.
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
        if not re.fullmatch(r"[A-Za-z0-9._-]+", writer):
            raise ValueError(
                f"a writer's name is letters, digits, '.', '_' and '-', not {writer!r}"
            )
        self._store, self._prefix, self.writer = store, prefix.rstrip("/"), writer
        self._interval_s = (
            interval_s if interval_s is not None else (LOCAL if store.is_local else REMOTE).flush
        )
        self._spool, self._memory_bytes, self._away_s = spool, memory_bytes, away_s
        self._full_bytes = memory_bytes + (spool_bytes if spool else 0)
        self._nonce = os.urandom(8).hex()
        self._changed = threading.Condition()  # guards everything below
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        self._waiting: deque[_Segment] = deque()  # cut, in order; the first may be on its way
        self._seq = self._stored_seq = self._segments = 0
        self._hurry = self._closed = False
        self._error: StoreError | None = None  # the last failure; None after a success
        self._fatal = False
        self._thread = threading.Thread(target=self._run, name=f"journal-{writer}", daemon=True)
        self._thread.start()

    def append(self, kind: str, **data: Any) -> int:
        """Add one event and return its seq. Raises TypeError for what is not JSON, StoreError when no more fits."""
        if clash := RESERVED & data.keys():
            raise ValueError(f"event {kind}: {', '.join(sorted(clash))} belongs to the journal")
        with self._changed:
            if self._closed:
                raise ValueError(f"journal {self._prefix}/{self.writer} is closed")
            if self._fatal or self._held() > 2 * self._full_bytes:
                raise self._failure("no more events can be held")
            head = {
                "v": VERSION,
                "seq": self._seq + 1,
                "t": round(time.time(), 6),
                "kind": kind,
                "writer": self.writer,
            }
            line = _encoder.encode(head | data).encode()
            self._seq += 1
            self._lines.append(line)
            self._lines_bytes += len(line)
            if self._lines_bytes >= SEGMENT_BYTES:
                self._cut()
            self._changed.notify_all()
            return self._seq

    @property
    def stalled(self) -> bool:
        """True when no new work should start: the spool is full, or the store has been away too long."""
        with self._changed:
            late = bool(self._waiting) and time.monotonic() - self._waiting[0].cut > self._away_s
            return self._fatal or late or self._held() > self._full_bytes

    def flush(self, timeout_s: float = 30.0) -> None:
        """Return when every event appended so far is stored. Raises StoreError when that took longer."""
        with self._changed:
            wanted, self._hurry = self._seq, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stored_seq >= wanted or self._fatal, timeout_s)
            self._hurry = False
            if self._stored_seq < wanted:
                raise self._failure(
                    f"{wanted - self._stored_seq} events could not be stored within {timeout_s:g} s"
                )

    def close(self, timeout_s: float = 30.0) -> None:
        """`flush`, and end the thread; quiet when repeated. After a StoreError the events are in the spool or lost."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        try:
            self.flush(timeout_s)
        finally:
            with self._changed:
                self._fatal = True  # the thread gives up; nobody is left to hear of it
                self._changed.notify_all()
            self._thread.join(1.0)

    def _held(self) -> int:
        return self._lines_bytes + sum(segment.size for segment in self._waiting)

    def _failure(self, what: str) -> StoreError:
        why = f": {self._error.what}" if self._error else ""
        remedy = (
            self._error.remedy
            if self._error
            else "check the network and the store's health, then run again"
        )
        name = f"journal {self._prefix}/{self.writer} in {self._store.url}"
        failure = StoreError(f"{name}: {what}{why}", remedy=remedy)
        failure.__cause__ = self._error
        return failure

    def _cut(self) -> None:
        """Make the lines a segment; keep it on disk when memory is full. The caller holds the lock."""
        self._segments += 1
        header = json.dumps({"segment": self._segments, "nonce": self._nonce}).encode()
        body = zlib.compress(b"\n".join([header, *self._lines]), 3)
        spooled = (self._spool or Path()) / f"{self.writer}-{self._segments:08d}"
        segment = _Segment(self._segments, self._seq, body, spooled, len(body), time.monotonic())
        in_memory = sum(waiting.size for waiting in self._waiting if waiting.body is not None)
        if self._spool and in_memory + len(body) > self._memory_bytes:
            with contextlib.suppress(
                OSError
            ):  # a full disk: it stays in memory, within the same bound
                self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
                spooled.write_bytes(body)
                segment.body = None
        self._waiting.append(segment)
        self._lines, self._lines_bytes = [], 0

    def _run(self) -> None:
        pause_s, last = RETRY_S[0], -self._interval_s
        while (segment := self._next(last)) is not None:
            try:
                body = segment.body if segment.body is not None else segment.spooled.read_bytes()
                stored = self._store.create(_key(self._prefix, self.writer, segment.number), body)
            except (StoreError, OSError) as error:
                failure = (
                    error
                    if isinstance(error, StoreError)
                    else StoreError(str(error), remedy="free the disk")
                )
                with self._changed:
                    self._error = failure
                    self._changed.wait_for(lambda: self._fatal, pause_s)
                pause_s = min(2 * pause_s, RETRY_S[1])
                continue
            pause_s, last = RETRY_S[0], time.monotonic()
            self._done(segment, stored)

    def _next(self, last: float) -> _Segment | None:
        """The next segment to store, when it is time for it; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._waiting or self._fatal)
            while not (self._waiting or self._hurry or self._fatal):
                left = last + self._interval_s - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._fatal:
                return None
            if not self._waiting:
                self._cut()
            return self._waiting[0]

    def _done(self, segment: _Segment, stored: bool) -> None:
        with self._changed:
            if stored:
                self._waiting.popleft()
                self._stored_seq, self._error = segment.last_seq, None
                if segment.body is None:
                    segment.spooled.unlink(missing_ok=True)
            else:
                what = f"segment {segment.number} of {self._prefix}/{self.writer} is already there, from another writer"
                self._error, self._fatal = (
                    StoreError(what, remedy="give every writer of a journal its own name"),
                    True,
                )
            self._changed.notify_all()


class JournalReader:
    """Follows every writer under `prefix`, each in order; resumes from a `position` that an earlier reader had.

    An event is returned once. A hole, or a segment that is not what was written, is a StoreError, raised when all that
    was good before it has been returned.
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
        self._discovered = self._looked = -float("inf")
        self._heard = clock()

    @property
    def position(self) -> Position:
        """Where the next poll goes on: all that polls have returned is before it."""
        return {writer: [number, seq] for writer, (number, seq) in self._read.items()}

    def poll(self) -> list[Event]:
        """All events that are there now and were not returned before. Raises StoreError; then nothing is skipped."""
        events: list[Event] = []
        try:
            self._discover()
            look = self._clock() - self._looked >= self._holes_s
            for writer in sorted(self._read):
                self._follow(writer, events, look=look)
            if look:
                self._looked = self._clock()
        except StoreError:
            if not events:
                raise  # else the next poll comes to it again
        if events:
            self._heard = self._clock()
        return events

    @property
    def delay_s(self) -> float:
        """How long to wait before the next poll: a tenth of the silence, within the store's bounds."""
        return min(
            max(0.1 * (self._clock() - self._heard), self._cadence.active), self._cadence.idle
        )

    def wait(self, timeout_s: float | None = None) -> None:
        """Sleep for `delay_s`, or `timeout_s` where that is less."""
        time.sleep(self.delay_s if timeout_s is None else min(self.delay_s, timeout_s))

    def _discover(self) -> None:
        if self._read and self._clock() - self._discovered < self._discover_s:
            return
        for writer in self._store.names(self._prefix):
            self._read.setdefault(writer, (0, 0))
        self._discovered = self._clock()

    def _follow(self, writer: str, events: list[Event], *, look: bool) -> None:
        """Add what `writer` has stored since; the position moves with every good segment."""
        while True:
            number, seq = self._read[writer]
            key = _key(self._prefix, writer, number + 1)
            body = self._store.get(key)
            if (
                body is None
                and look
                and (later := self._store.list(f"{self._prefix}/{writer}", after=key))
            ):
                body = self._store.get(
                    key
                )  # segments are stored in order: now it is there, or it is lost
                if body is None:
                    raise self._lost(
                        writer, seq + 1, f"{key} is missing though {later[0]} is there"
                    )
            if body is None:
                return
            found = self._decode(key, writer, number + 1, seq, body)
            events.extend(found)
            self._read[writer] = (number + 1, seq + len(found))

    def _decode(self, key: str, writer: str, number: int, seq: int, body: bytes) -> list[Event]:
        try:
            header, *found = [json.loads(line) for line in zlib.decompress(body).split(b"\n")]
            if header["segment"] != number or any(event["writer"] != writer for event in found):
                raise ValueError(f"it holds segment {header['segment']}")
            seqs = [event["seq"] for event in found]
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise self._lost(writer, seq + 1, f"{key} is damaged: {error}") from error
        for expected, got in enumerate(seqs, seq + 1):
            if got != expected:
                raise self._lost(writer, expected, f"{key} has event {got} in its place")
        return found

    def _lost(self, writer: str, seq: int, why: str) -> StoreError:
        return StoreError(
            f"the journal in {self._store.url} lost event {seq} of writer {writer}: {why}",
            remedy="run again; nothing else may write to or delete from the store's sessions/ during a run",
        )
