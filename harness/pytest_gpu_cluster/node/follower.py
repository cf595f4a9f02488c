"""The duty of a node beside the head: join its Ray, clean up after each session, close with it."""

from __future__ import annotations

import contextlib
import time

from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.silence import HeartbeatMonitor
from pytest_gpu_cluster.node.context import Node, Shutdown
from pytest_gpu_cluster.node.logs import NodeLogs, Served
from pytest_gpu_cluster.node.processes import Ray, State
from pytest_gpu_cluster.node.visits import Visit, Visits


class Follower:
    """Joins the head's Ray when its address is known. Serves no session itself."""

    busy = False
    doing = "waits for the head's Ray"

    def __init__(
        self, node: Node, ray: Ray, visits: Visits, logs: NodeLogs, shutdown: Shutdown
    ) -> None:
        self.store, self.cluster, self.waits = node.store, node.cluster, node.boot.waits
        self.ray, self.visits, self.logs, self.shutdown = ray, visits, logs, shutdown
        self.head = HeartbeatMonitor()
        self.beaten = False  # the head has been heard
        self.announced: Visit | None = None  # that the head was seen to serve
        self.closed: Visit | None = None  # whose record was final at the last look
        self.polled = 0.0  # monotonic

    def begin(self) -> None:
        """Nothing starts before the head's Ray is up."""

    def on_ray_ready(self) -> None:
        """The head learns of this node from its record."""

    def tick(self) -> None:
        """Look at the head. Raises HarnessError: the store cannot be reached, no port is free."""
        if self.ray.state is State.ABSENT and (address := self.cluster.head()) is not None:
            self.ray.start(address)
        now = time.monotonic()
        if now - self.polled > self.waits.head_beat_s / 2:
            self.polled = now
            self._look_at_head()
            if (visit := self.visits.current) is not None:
                self._look_at(visit)

    def end(self) -> None:
        """Leave the logs to the session: that which is here, or that which this node did not come
        up for.

        Its places are left alone: it may go on elsewhere, and on one machine they are the head's.
        Raises no HarnessError.
        """
        with contextlib.suppress(HarnessError):
            if self.visits.current is None and self.ray.state is not State.READY:
                self.logs.begin(Served(session=self.cluster.wanted_by()))
            self.logs.end()

    def _look_at_head(self) -> None:
        """Request the end of this node when its head has ended or is silent. Raises StoreError."""

        def read() -> bytes | None:
            value = self.cluster.heartbeat()
            if self.beaten and value is None:
                self.shutdown.request("the cluster has ended: its record is gone")
            self.beaten = self.beaten or value is not None
            return value

        silent_s = self.head.poll(read)
        if silent_s > (self.waits.grace_s if self.beaten else self.waits.join_s):
            self.shutdown.request("the head's heartbeat stopped")

    def _look_at(self, visit: Visit) -> None:
        """Store logs of a session, and remove what it has here when it is over. Raises StoreError.

        What the head says may be older than the session. So that has ended which the head was seen
        to serve and serves no more, or whose record is final for a while.
        """
        self.logs.store()
        serves = self.cluster.announcement().session
        if serves == visit.session:
            self.announced = visit
            return
        if self.announced is visit or self.closed is visit or serves:
            self.visits.end(visit)
        elif SessionRecord(self.store, visit.session).is_closed():
            self.closed = visit
