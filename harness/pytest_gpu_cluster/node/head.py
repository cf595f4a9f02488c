"""The duty of the head node: lend the cluster to one session at a time.

Sessions offer themselves in the cluster's record, each under the next number. The decision about
each is created once, by this keeper (taken) or by a client that has waited too long (withdrawn).
"""

from __future__ import annotations

import contextlib
import os
import time

from pytest_gpu_cluster.contract import procfs
from pytest_gpu_cluster.contract.background import Background
from pytest_gpu_cluster.contract.cluster_record import Announcement, ClusterPhase
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.events import Notice
from pytest_gpu_cluster.contract.failures import KeeperStop
from pytest_gpu_cluster.contract.masking import masker
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.request import SessionRequest
from pytest_gpu_cluster.contract.sealing import KeyPair
from pytest_gpu_cluster.node.context import Node, Shutdown, Stop
from pytest_gpu_cluster.node.forkserver import SUPERVISOR_NAME
from pytest_gpu_cluster.node.logs import NodeLogs, Served
from pytest_gpu_cluster.node.processes import ForkServer, Ray, State
from pytest_gpu_cluster.node.session import (
    SESSION_FILE,
    ActiveSession,
    append_lost_end,
    start_session,
    take_passed,
)
from pytest_gpu_cluster.node.visits import remove_places
from pytest_gpu_cluster.node.working_trees import WorkingTrees

END_LIMIT_S = 10.0  # for a session to end when the node closes
SUPERVISOR_PATIENCE_S = 5.0  # for the processes of a finished session to go


class Head:
    """Serves sessions, one after the other, and announces what the cluster does."""

    doing = "starts Ray"

    def __init__(
        self,
        node: Node,
        trees: WorkingTrees,
        ray: Ray,
        fork_server: ForkServer,
        logs: NodeLogs,
        shutdown: Shutdown,
    ) -> None:
        self.node, self.cluster, self.trees = node, node.cluster, trees
        self.ray, self.fork_server, self.shutdown = ray, fork_server, shutdown
        self.logs = logs
        self.session: ActiveSession | None = None
        self.served = False  # a session has been taken
        self.idle_s = node.boot.idle_s  # as the last session wants it
        self.idle_since = time.monotonic()
        self.inbox = 1  # the number of the next offer
        self.answered: set[int] = set()  # offers after that one
        self.asked = 0.0  # monotonic: when it was looked for
        self.beats, self.beaten = 0, 0.0  # announcements, and when the last was
        self.announced: ClusterPhase | None = None
        self.keys = KeyPair() if node.boot.sealed else None
        self.sealed: dict[str, dict[str, str]] = {}  # values that have come, by session

    @property
    def busy(self) -> bool:
        return self.session is not None

    @property
    def phase(self) -> ClusterPhase:
        if self.session is not None:
            return ClusterPhase.BUSY
        return ClusterPhase.IDLE if self.ray.state is State.READY else ClusterPhase.STARTING

    @property
    def _pause_s(self) -> float:
        """Seconds between two looks for an offer."""
        is_local = self.node.store.is_local
        return 0.0 if is_local else offer_pause_s(time.monotonic() - self.idle_since)

    def begin(self) -> None:
        """Start Ray. Raises InfrastructureError: no free port; EnvironmentBuildError."""
        self.ray.start()
        if self.keys is not None:
            self.cluster.put_key(self.keys.public)

    def on_ray_ready(self) -> None:
        """Let the other nodes join. Raises StoreError."""
        if self.node.boot.nodes > 1:
            self.cluster.put_head(self.ray.address)

    def tick(self) -> None:
        """Watch the session, or take one, or close an idle cluster. Raises HarnessError."""
        now = time.monotonic()
        if now - self.beaten > self.node.boot.waits.head_beat_s or self.phase != self.announced:
            self._announce()
            self.logs.store()
        if self.session is not None:
            self._watch(self.session)
        elif self.fork_server.state is State.READY and now >= self.asked + self._pause_s:
            self.asked = now
            self._take_session()
        idle_limit_s = self.idle_s if self.served else self.node.boot.waits.unasked_s
        if self.session is None and now - self.idle_since > idle_limit_s:
            self.shutdown.request("idle for as long as it may")

    def end(self) -> None:
        """End the session, and reject those that wait. Raises no HarnessError."""
        if self.session is not None:
            self.session.end(self.shutdown.stop)
            deadline = time.monotonic() + END_LIMIT_S
            while self.session is not None and time.monotonic() < deadline:
                with contextlib.suppress(HarnessError):
                    self._watch(self.session)
                time.sleep(0.02)
        with contextlib.suppress(HarnessError):
            for _, name in self.cluster.offers(self.inbox):
                self._reject(name)

    def _take_session(self) -> None:
        """Lend the cluster to the first session that offers itself."""
        for number, name in self.cluster.offers(self.inbox):
            if number in self.answered or not self._has_values(number, name):
                continue
            record = SessionRecord(self.node.store, name)
            request = Background(record.request)  # while the decision is made
            decided = self.cluster.decide(name, taken=True)
            self._answer(number)
            if decided:
                self._begin(record, request)
                return
            self.sealed.pop(name, None)

    def _answer(self, number: int) -> None:
        """Note that an offer is decided. The next one to look for is the first that is not."""
        self.answered.add(number)
        while self.inbox in self.answered:
            self.answered.remove(self.inbox)
            self.inbox += 1

    def _has_values(self, number: int, name: str) -> bool:
        """Return False while the client has not sealed the values of a session yet."""
        if self.keys is None or name in self.sealed:
            return True
        if (content := self.cluster.take_sealed(name)) is None:
            return False
        try:
            self.sealed[name] = self.keys.open(content, name)
        except HarnessError as problem:
            self._answer(number)
            stop = Stop(kind=KeeperStop.NOT_BEGUN, message=problem.what)
            self._record_lost(SessionRecord(self.node.store, name), stop)
            return False
        return True

    def _take_values(self, name: str) -> dict[str, str]:
        if self.keys is not None:
            return self.sealed.pop(name, {})
        return take_passed(self.node.directory / "handoff" / name)

    def _begin(self, record: SessionRecord, reading: Background[SessionRequest | None]) -> None:
        self.served = True
        try:
            request = reading.result()
            if request is None:
                return
            values = self._take_values(record.session)
            self.session = start_session(self.node, request, self.trees, values)
            self.logs.begin(Served(session=record.session, passed=self.session.passed))
        except Exception as problem:
            message = f"the keeper could not begin it: {problem}"
            self._record_lost(record, Stop(kind=KeeperStop.NOT_BEGUN, message=message))
            raise
        self._announce()

    def _watch(self, session: ActiveSession) -> None:
        if session.watch():
            self.session = None
            try:
                if session.report is None:
                    stop, held = session.cause(self.shutdown), list[Notice]()
                    if stop.kind is not KeeperStop.CLUSTER_CLOSED:  # that is to be quick
                        held = self._store_files(session)
                    append_lost_end(
                        session.record,
                        stop,
                        mask=session.mask,
                        tail=session.tail(),
                        notices=held,
                        timeout_s=self.node.boot.waits.store_patience_s,
                    )
            finally:
                self._release(session)

    def _release(self, session: ActiveSession) -> None:
        """Be idle again, or request the end of a cluster that may not be lent again."""
        limits = session.request.limits
        if supervisors_remain() or not session.fit:
            name, detail = session.record.session, unfit_because(session)
            self.shutdown.request(f"not lent again after session {name}: {detail}")
        elif limits.idle_s <= 0:
            self.shutdown.request("the session is over")
        if not self.shutdown.requested:
            self.trees.keep()
        remove_places(self.node, session.scratch)
        self.idle_since, self.idle_s = time.monotonic(), limits.idle_s
        with contextlib.suppress(OSError):
            (self.node.directory / SESSION_FILE).unlink()
        self._announce()
        self.logs.end()

    def _reject(self, name: str) -> None:
        """Answer an offer of a cluster that closes.

        A session that asked whether this cluster is free takes another; the one that it was started
        for has no other, so its record is given an end.
        """
        if self.served:
            self.cluster.decide(name, taken=False)
        else:
            self._record_lost(SessionRecord(self.node.store, name), self.shutdown.stop)

    def _announce(self) -> None:
        """Say that this keeper lives, and what the cluster does now. Raises StoreError.

        One that fails is made good by the next.
        """
        self.beats, self.beaten, self.announced = self.beats + 1, time.monotonic(), self.phase
        idle_left_s = max(0.0, self.idle_s - (time.monotonic() - self.idle_since))
        self.cluster.announce(
            Announcement(
                state=self.phase,
                session=self.session.record.session if self.session is not None else None,
                idle_left_s=idle_left_s if self.phase is ClusterPhase.IDLE else None,
                ready=self.ray.state is State.READY,
                why=self.shutdown.message,
                inbox=self.inbox,
                beats=self.beats,
            )
        )

    @staticmethod
    def _store_files(session: ActiveSession) -> list[Notice]:
        """Store what the tests have left; return what is held back.

        The end of the session does not depend on it.
        """
        held: list[Notice] = []
        try:
            held.extend(session.store_files())
        except (HarnessError, OSError) as problem:
            print(f"keeper: files of session {session.record.session}: {problem}", flush=True)
        return held

    def _record_lost(self, record: SessionRecord, stop: Stop) -> None:
        """Give a session an end of which no test has run."""
        timeout_s = self.node.boot.waits.store_patience_s
        append_lost_end(record, stop, mask=masker({}), timeout_s=timeout_s)
        self.logs.begin(Served(session=record.session))
        self.logs.end()


def offer_pause_s(idle_s: float) -> float:
    """Return the seconds between two looks for an offer in a distant store: a tenth of `idle_s`.

    A minute has at most 68 of them: 10 in the first 5 s, 8 in the next 5, then one a second.
    """
    return min(max(0.5, 0.1 * idle_s), 1.0)


def unfit_because(session: ActiveSession) -> str:
    """Return why the cluster cannot serve another session after this one."""
    of_keeper = session.stop.message if session.stop is not None else ""
    of_agent = session.report.why if session.report is not None else ""
    return session.mask(of_keeper or of_agent) or "its agent was lost"


def supervisors() -> list[int]:
    """Return the pids of the supervisors on this node, which are children of the keeper."""
    return [
        pid for pid in procfs.children(os.getpid()) if procfs.kernel_name(pid) == SUPERVISOR_NAME
    ]


def supervisors_remain(*, patience_s: float = SUPERVISOR_PATIENCE_S) -> bool:
    """Return True when a process of the last session is still there after some patience.

    One that has said its exit code needs a moment to go: it gives back the memory of what it had
    imported. What it leaves is a zombie until the keeper's next look, and does not count.
    """
    deadline = time.monotonic() + patience_s
    while supervisors():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.01)
    return False
