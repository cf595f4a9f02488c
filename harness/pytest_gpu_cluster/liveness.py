"""Request and heartbeat of a living client, and the ending of a record whose client is gone.

No clock crosses machines: a heartbeat is a value that changes, judged by the reader's own clock.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.cluster_record import ClusterPhase, ClusterRecord, clusters
from pytest_gpu_cluster.contract.errors import (
    HarnessError,
    RequestError,
    StoreError,
    UnreadableRecordError,
)
from pytest_gpu_cluster.contract.failures import Closer, FailureClass, StopReason
from pytest_gpu_cluster.contract.record import Ending, SessionRecord
from pytest_gpu_cluster.contract.silence import Stopwatch
from pytest_gpu_cluster.contract.waits import WAITS


class Heartbeat:
    """The beats of this client, and for how long the store has taken none of them."""

    def __init__(self, record: SessionRecord) -> None:
        self._record = record
        self._count = 0
        self._refused = Stopwatch()
        self._problem: HarnessError | None = None

    def beat(self) -> None:
        """Say once that the client lives. A store that is away may be back for the next beat."""
        self._count += 1
        try:
            self._record.beat(f"{os.getpid()} {self._count}")
            self._problem = None
        except HarnessError as problem:
            self._problem = problem
        self._refused.look(self._problem is not None)

    def raise_if_refused(self) -> None:
        """Raise StoreError where the store has taken nothing for too long: full, or read-only.

        Nothing but its writers notices it, and the cluster can write no result either.
        """
        problem = self._problem
        if problem is not None and self._refused.seconds > WAITS.store_patience_s:
            what = f"the store has taken nothing for {self._refused.seconds:.0f} s: {problem.what}"
            raise StoreError(what, remedy=problem.remedy) from problem


@contextlib.contextmanager
def heartbeat(record: SessionRecord) -> Iterator[Heartbeat]:
    """Say that this client lives, until the block ends."""
    ended = threading.Event()
    beats = Heartbeat(record)

    def run() -> None:
        while True:
            beats.beat()
            if ended.wait(WAITS.heartbeat_s):
                return

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield beats
    finally:
        ended.set()
        thread.join(timeout=2)


@contextlib.contextmanager
def recorded(put_request: Callable[[], None]) -> Iterator[None]:
    """Put the request while the block runs: others can then say how the session ended.

    Raises RequestError for a store that does not take it, also where that has made the block fail.
    """
    put = Background(put_request)
    try:
        yield
    except HarnessError:
        _check(put)
        raise
    _check(put)


def _check(put: Background[None]) -> None:
    try:
        put.result()
    except StoreError as problem:
        raise RequestError(problem.what, remedy=problem.remedy) from problem


def silent(sessions: Iterable[SessionRecord], kept: Iterable[ClusterRecord] = ()) -> set[str]:
    """Return the ids of open sessions without a client to make them final.

    Likewise those of clusters whose keeper is silent. All are watched until each was heard, or for
    the longest of their graces. What cannot be read is no record.
    """
    beats: dict[str, tuple[Callable[[], bytes | None], bytes | None]] = {}
    patience_s = 0.0
    for record in sessions:
        with contextlib.suppress(UnreadableRecordError):
            if not record.is_closed():
                request = record.request()
                beats[record.session] = (record.heartbeat, record.heartbeat())
                patience_s = max(patience_s, request.limits.grace_s if request is not None else 0)
    for cluster in kept:
        beats[cluster.cluster] = (cluster.heartbeat, cluster.heartbeat())
    deadline = time.monotonic() + max(WAITS.lost_s, patience_s)
    while beats and time.monotonic() < deadline:
        time.sleep(min(1.0, WAITS.lost_s))
        for name, (read, before) in [*beats.items()]:
            with contextlib.suppress(UnreadableRecordError):
                if read() != before:
                    del beats[name]
    return set(beats)


def close_when_client_gone(record: SessionRecord) -> bool:
    """Close the record of a session whose client is gone, and return True; False: it lives.

    The agent is asked to stop and waited for, `WAITS.settle_s` seconds at most.
    """
    if record.is_closed():
        return True
    if record.session not in silent([record]) or record.is_closed():
        return record.is_closed()
    record.order_stop(StopReason.CLIENT_LOST)
    deadline = time.monotonic() + WAITS.settle_s
    while is_served(record) and not record.journal_has_end() and time.monotonic() < deadline:
        time.sleep(0.2 if record.store.is_local else 1.0)
    close_for_lost_client(record, by=Closer.REPORT)
    return True


def is_served(record: SessionRecord) -> bool:
    """Return True when a cluster serves the session, or starts with it in its inbox."""
    return any(
        state.session == record.session
        or (
            state.state is ClusterPhase.STARTING
            and ClusterRecord(record.store, cluster.id).has_offer(record.session)
        )
        for cluster, state in clusters(record.store)
    )


def close_for_lost_client(record: SessionRecord, *, by: Closer) -> bool:
    """Close the record in the place of a lost client. False when another has done it before.

    A journal with `session_finished` says how the tests ended; without it, or where it cannot be
    read, they are lost too.
    """
    has_end = False
    with contextlib.suppress(UnreadableRecordError):
        has_end = record.journal_has_end()
    lost = None if has_end else FailureClass.INFRASTRUCTURE
    message = "the client was lost; what had finished is in the journal"
    return record.close(Ending(failure_class=lost, message=message), by=by)
