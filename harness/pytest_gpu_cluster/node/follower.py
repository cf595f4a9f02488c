"""The duty of a node beside the head: join its Ray, and close when the head is gone."""

from __future__ import annotations

import time

from pytest_gpu_cluster.contract.silence import HeartbeatMonitor
from pytest_gpu_cluster.node.context import Node, Shutdown
from pytest_gpu_cluster.node.processes import Ray, State


class Follower:
    """Joins the head's Ray when its address is known. Serves no session itself."""

    busy = False

    def __init__(self, node: Node, ray: Ray, shutdown: Shutdown) -> None:
        self.cluster, self.waits = node.cluster, node.boot.waits
        self.ray, self.shutdown = ray, shutdown
        self.head = HeartbeatMonitor()
        self.polled = 0.0  # monotonic

    def begin(self) -> None:
        """Nothing starts before the head's Ray is up."""

    def on_ray_ready(self) -> None:
        """The head learns of this node from Ray itself."""

    def tick(self) -> None:
        """Look at the head. Raises HarnessError: the store cannot be reached, no port is free."""
        if self.ray.state is State.ABSENT and (address := self.cluster.head()) is not None:
            self.ray.start(address)
        now = time.monotonic()
        if now - self.polled > self.waits.head_beat_s / 2:
            self.polled = now
            if self.head.poll(self.cluster.heartbeat) > self.waits.grace_s:
                self.shutdown.request("the head's heartbeat stopped")

    def end(self) -> None:
        """Nothing waits for this node."""
