"""The orders of a process that runs tests, and the tests that wait for their turn."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

import pytest

from pytest_gpu_cluster.contract.messages import FinishSession, RunTests, StopRunning, TestOrder
from pytest_gpu_cluster.worker.streams import Channel


class Supply(Enum):
    """The tests that may still come."""

    OPEN = auto()  # more may follow
    LAST = auto()  # nothing follows those that wait
    ENDED = auto()  # start no further test: stopped, finished, or the agent is lost


class OrderQueue:
    """Tests that wait, in the order in which they arrived."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.waiting: deque[TestOrder] = deque()
        self.uncollected: list[TestOrder] = []  # the files of these may have to be collected
        self.supply = Supply.OPEN

    @property
    def ended(self) -> bool:
        return self.supply is Supply.ENDED

    def take(self, session: pytest.Session) -> TestOrder | None:
        """Wait for a test and take it from the queue; None when no further one is to start."""
        self.receive(session, wait=True)
        return self.waiting.popleft() if self.waiting and not self.ended else None

    def receive(self, session: pytest.Session, *, wait: bool) -> None:
        """Take in the orders that have come; with `wait`, until there is something to do."""
        while not self.ended:
            match self._channel.receive(wait=wait and not self.waiting):
                case None:
                    if self._channel.closed:
                        self.supply = Supply.ENDED
                    return
                case RunTests(tests=tests, last=last):
                    self.waiting.extend(tests)
                    self.uncollected.extend(tests)
                    self.supply = Supply.LAST if last else Supply.OPEN
                case StopRunning():
                    session.shouldstop = session.shouldstop or "stopped"
                    self.supply = Supply.ENDED
                case FinishSession():
                    self.supply = Supply.ENDED
                case message:
                    raise ValueError(f"a process that runs tests got {message!r}")

    def take_uncollected(self) -> list[TestOrder]:
        """Return the tests that have come since the last time."""
        orders, self.uncollected = self.uncollected, []
        return orders
