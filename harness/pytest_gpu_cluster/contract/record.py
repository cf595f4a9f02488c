"""The record of a session, and the history of all: their keys in the store are spelled here.

sessions/<id>/request.json          the request; no secret
sessions/<id>/events/<writer>/<n>   segments of the journal
sessions/<id>/control/heartbeat     that of the client, with its order to stop
sessions/<id>/artifacts/ coverage/ logs/<node>/  of the tests, of coverage.py, of a node's processes
sessions/<id>/outputs/<node>.json   what the tests wrote into the tree; the bytes are in blobs/
sessions/<id>/summary.json          the report, as its readers were told
sessions/<id>/result.json           the ending; created once, by whoever is left to do it
history/                            seconds per test, and the last results of branches
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import cast
from urllib.parse import quote

from pytest_gpu_cluster.contract.bounded import DOCUMENT_BYTES, SMALL_BYTES, parse_json
from pytest_gpu_cluster.contract.event_log import EventMask, EventReader, EventWriter
from pytest_gpu_cluster.contract.events import Notice, SessionFinished
from pytest_gpu_cluster.contract.failures import Closer, FailureClass, StopReason
from pytest_gpu_cluster.contract.fields import JsonObject, Noun, alias, value_of
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.ids import check_id, check_named, is_id
from pytest_gpu_cluster.contract.journal import JournalWriter
from pytest_gpu_cluster.contract.journal_reader import JournalReader
from pytest_gpu_cluster.contract.masking import Masker
from pytest_gpu_cluster.contract.outputs import NodeOutputs, WrittenFile
from pytest_gpu_cluster.contract.request import VERSION, SessionRequest
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import damaged
from pytest_gpu_cluster.contract.stored import get_noun, ids_in, put_noun
from pytest_gpu_cluster.contract.trees import pack_blob, packed_limit, unpack_blob

AGENT_WRITER = "agent"  # of the journal


@dataclass(frozen=True, kw_only=True)
class Ending(Noun):
    """How a session ended: the record, the exit code and every report are made of it."""

    exit_code: int | None = field(
        default=None, metadata=alias("exitstatus")
    )  # None: nobody was left to say
    failure_class: FailureClass | None = None
    message: str = ""
    remedy: str = ""
    cancelled: bool = False  # by the user


@dataclass(frozen=True, kw_only=True)
class Result(Ending):
    """result.json: the ending, and who made the record final."""

    v: int = VERSION
    closed_by: Closer
    nonce: str
    seconds: float | None = None  # None: its client was not there at the end
    counts: Mapping[str, int] = field(default_factory=dict)  # tests by the word of pytest's summary


@dataclass(frozen=True, kw_only=True)
class ClientWord(Noun):
    """control/heartbeat: that it changes says that the client lives. No clock crosses machines."""

    beat: str
    stop: StopReason | None = None  # the agent is to end the session


class SessionRecord:
    """What the store holds of one session."""

    def __init__(self, store: Store, session: str) -> None:
        self.store, self.session = store, check_id(session, "session")
        self.prefix = f"sessions/{session}"
        self._client_key = f"{self.prefix}/control/heartbeat"
        self._stop: StopReason | None = None
        self._speaking = threading.Lock()  # no beat that has begun before an order comes after it

    @property
    def url(self) -> str:
        return f"{self.store.url.rstrip('/')}/{self.prefix}"

    def put_request(self, request: SessionRequest) -> None:
        """From here on others know of the session and can say how it ended."""
        put_noun(self.store, f"{self.prefix}/request.json", request)

    def request(self) -> SessionRequest | None:
        """Return the request; None for a session that is not there."""
        key = f"{self.prefix}/request.json"
        request = get_noun(self.store, key, SessionRequest)
        if request is not None:
            check_named(key, request.session, self.session)
        return request

    def beat(self, text: str) -> None:
        """Say that the client lives; the text only has to differ from the last."""
        with self._speaking:
            put_noun(self.store, self._client_key, ClientWord(beat=text, stop=self._stop))

    def heartbeat(self) -> bytes | None:
        """Return a value that changes while the client lives: its last word, unread."""
        return self.store.get(self._client_key, limit_bytes=SMALL_BYTES)

    def order_stop(self, reason: StopReason) -> None:
        """Ask the agent to end the session; later beats of this object repeat it."""
        self._stop = reason
        self.beat(f"stop {secrets.token_hex(4)}")

    def stop_order(self) -> StopReason | None:
        return self.stop_order_in(self.heartbeat())

    def stop_order_in(self, heartbeat: bytes | None) -> StopReason | None:
        """Return the order in a heartbeat. Raises UnreadableRecordError."""
        try:
            return None if heartbeat is None else ClientWord.from_json(parse_json(heartbeat)).stop
        except ValueError as problem:
            raise damaged(self.store.url, self._client_key, problem) from problem

    def writer(
        self,
        name: str,
        *,
        spool: Path | None = None,
        mask: EventMask | None = None,
    ) -> EventWriter:
        """Return the journal of one writer, who uses this name once; see JournalWriter."""
        journal = JournalWriter(self.store, f"{self.prefix}/events", name, spool=spool)
        return EventWriter(journal, mask)

    def reader(self, *, expected: Sequence[str] = ()) -> EventReader:
        return EventReader(JournalReader(self.store, f"{self.prefix}/events", expected=expected))

    def journal(self) -> JournalReader:
        """Return a reader of the entries as they are stored."""
        return JournalReader(self.store, f"{self.prefix}/events")

    def append_end(
        self,
        writer: str,
        event: SessionFinished,
        *,
        mask: Masker,
        notices: Iterable[Notice] = (),
        timeout_s: float,
    ) -> None:
        """Say in the journal how the session ended, in the place of an agent that is lost.

        Raises StoreError when the store was away for `timeout_s` seconds.
        """
        journal = self.writer(writer, mask=lambda each: mask.json(each.to_json()))
        for each in (*notices, event):
            journal.append(each)
        journal.close(timeout_s)

    def journal_has_end(self) -> bool:
        """True when some writer has said how the session ended."""
        entries = self.journal().poll()
        return any(entry.get("kind") == SessionFinished.kind for entry in entries)

    def is_closed(self) -> bool:
        key = f"{self.prefix}/result.json"
        return self.store.get(key, limit_bytes=DOCUMENT_BYTES) is not None

    def result(self) -> Result | None:
        """Return the ending; None while the record is open."""
        return get_noun(self.store, f"{self.prefix}/result.json", Result)

    def close(
        self,
        ending: Ending,
        *,
        by: Closer,
        seconds: float | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> bool:
        """Make the record final, once. False when another has done it before."""
        result = Result(
            closed_by=by,
            nonce=secrets.token_hex(8),
            seconds=seconds,
            counts=counts or {},
            **vars(ending),
        )
        key = f"{self.prefix}/result.json"
        return self.store.create(key, json.dumps(result.to_json()).encode())

    def artifacts_prefix(self) -> str:
        return f"{self.prefix}/artifacts"

    def artifacts(self) -> list[str]:
        """Return the keys of the files that tests left in `artifacts`, relative to their prefix."""
        prefix = f"{self.artifacts_prefix()}/"
        return [key.removeprefix(prefix) for key in self.store.list(self.artifacts_prefix())]

    def artifact(self, name: str) -> bytes | None:
        """Return the bytes of one of `artifacts`; None when it has gone."""
        return self.store.get(f"{self.artifacts_prefix()}/{name}")

    def put_output(self, digest: str, content: bytes) -> None:
        """Store the bytes of a file that the tests wrote, by their sha256."""
        self.store.put(f"{self.prefix}/outputs/blobs/{digest}", pack_blob(content))

    def output(self, file: WrittenFile) -> bytes:
        """Return the bytes of a file that the tests wrote. Raises StoreError when they are lost."""
        key = f"{self.prefix}/outputs/blobs/{file.blob}"
        try:
            packed = self.store.get(key, limit_bytes=packed_limit(file.size))
            return unpack_blob(packed or b"", file.blob, file.size)
        except ValueError as problem:
            raise damaged(self.store.url, key, problem) from problem

    def put_outputs(self, outputs: NodeOutputs) -> None:
        """Store the listing of a node, after the bytes that it names."""
        node = check_id(outputs.node, "node")
        put_noun(self.store, f"{self.prefix}/outputs/{node}.json", outputs)

    def outputs(self) -> list[NodeOutputs]:
        """Return the listings of all nodes on which the tests wrote into the tree."""
        folder = f"{self.prefix}/outputs"
        listings: list[NodeOutputs] = []
        for node in ids_in(self.store, folder):
            key = f"{folder}/{node}.json"
            if (listing := get_noun(self.store, key, NodeOutputs)) is not None:
                check_named(key, listing.node, node)
                listings.append(listing)
        return listings

    def put_log(self, node: str, name: str, text: str) -> None:
        self.store.put(f"{self.prefix}/logs/{check_id(node, 'node')}/{name}", text.encode())

    def coverage_key(self, worker: str) -> str:
        """Return the key of the data that coverage.py measured in a test process."""
        return f"{self.prefix}/coverage/{check_id(worker, 'worker')}"

    def coverage(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the data at those of these keys that are of this session's coverage, by key."""
        folder = f"{self.prefix}/coverage/"
        own = [key for key in keys if is_id(key.removeprefix(folder))]  # else a path is left
        return {key: data for key in own if (data := self.store.get(key)) is not None}

    def is_left_by_tests(self, key: str) -> bool:
        """Return True for a key of what tests of this session leave: artifacts and coverage."""
        folder, *names = key.removeprefix(f"{self.prefix}/").split("/")
        plain = all(name not in ("", ".", "..") for name in names)
        return key.startswith(f"{self.prefix}/") and folder in ("artifacts", "coverage") and plain

    def put_summary(self, text: str) -> None:
        self.store.put(f"{self.prefix}/summary.json", text.encode())

    def summary(self) -> JsonObject:
        """Return the report that was told; empty where none was. Raises StoreError."""
        key = f"{self.prefix}/summary.json"
        raw = self.store.get(key, limit_bytes=DOCUMENT_BYTES)
        try:
            return cast(JsonObject, value_of(dict, {} if raw is None else parse_json(raw)))
        except ValueError as problem:
            raise damaged(self.store.url, key, problem) from problem


def session_ids(store: Store) -> list[str]:
    """Return the ids of all sessions, oldest first: an id begins with its time.

    A name that is no id is passed over.
    """
    return [*filter(is_id, store.folders("sessions"))]


DURATIONS = "history/durations.json"


def durations(store: Store) -> dict[str, list[float]]:
    """Return the seconds of each test's last runs by node id, newest first. Raises StoreError."""
    raw = store.get(DURATIONS, limit_bytes=DOCUMENT_BYTES)
    try:
        value = value_of(dict[str, list[float]], {} if raw is None else parse_json(raw))
    except ValueError as problem:
        raise damaged(store.url, DURATIONS, problem) from problem
    return cast(dict[str, list[float]], value)


def put_durations(store: Store, seconds: Mapping[str, list[float]]) -> None:
    store.put(DURATIONS, json.dumps(seconds).encode())


def branch_key(branch: str, suite: str) -> str:
    """Return the key of a branch's last results.

    `~`, which is quoted in a branch's name, sets another suite apart.

    >>> branch_key("feature/x", "gpu-cluster"), branch_key("main", "nightly")
    ('history/branches/feature%2Fx.json', 'history/branches/main~nightly.json')
    """
    other = "" if suite == "gpu-cluster" else f"~{check_id(suite, 'suite')}"
    name = quote(branch, safe="", errors="surrogatepass").replace("~", "%7E")
    return f"history/branches/{name}{other}.json"
