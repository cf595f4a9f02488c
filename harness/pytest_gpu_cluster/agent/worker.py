"""One test process: its stage, its tests, and the meaning of its death."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Protocol

from pytest_gpu_cluster.agent.plan import Case, Demand
from pytest_gpu_cluster.agent.reservations import Reservation
from pytest_gpu_cluster.contract.messages import (
    Done,
    Exit,
    FinishSession,
    Order,
    RunTests,
    StopRunning,
    TestOrder,
    encode,
)

STACKS_S = 0.3  # for the stacks of a process to arrive before it is killed


class Transport(Protocol):
    """The connection to a process: a Lease, or the same verbs through the actor on its node."""

    def send(self, message: bytes) -> None: ...
    def signal(self, number: int) -> None: ...
    def kill(self) -> None: ...
    def stacks(self) -> None: ...
    def receive(self, timeout_s: float) -> list[bytes]: ...


class Stage(Enum):
    """The stages of a test process, which decide the meaning of its death."""

    STARTING = auto()  # its pytest is not ready
    IDLE = auto()  # it waits for tests
    RUNNING = auto()  # it has tests
    FINISHING = auto()  # it was asked to end, because nothing is left for it
    STOPPING = auto()  # it was asked to end, because the session ends
    TIMED_OUT = auto()  # it is being killed: its test outlived the limit
    LOST = auto()  # it is being killed: its reservation is lost


class Death(Enum):
    """The meanings that the end of a test process can have."""

    NOT_STARTED = auto()  # it never became ready
    TIMEOUT = auto()  # its test outlived the limit
    MACHINE_LOST = auto()  # its tests run again elsewhere
    CRASH = auto()  # its test is the reason
    ENDED = auto()  # as it was asked to


class Worker:
    """A test process and its tests. Until it has a `transport`, its devices are being reserved."""

    def __init__(self, name: str, demand: Demand, devices: Mapping[str, float]) -> None:
        self.name, self.demand, self.devices = name, demand, devices
        self.stage = Stage.STARTING
        self.reservation: Reservation | None = None
        self.transport: Transport | None = None
        self.queue: deque[Case] = deque()
        self.running: Case | None = None
        self.unpublished: Case | None = None  # it runs, and the journal does not say so yet
        self.phase = "setup"  # of the running test
        self.since = time.monotonic()  # of the running test, or of waiting
        self.stopped_at: float | None = None  # None: the session does not end
        self.timed_out_s = 0.0
        self.loss: str | None = None  # the message of its reservation's loss; None: it is not lost
        self.refusal = ""  # the usage error of its pytest
        self.result: Done | None = None

    @property
    def home(self) -> str:
        """The node of the process itself."""
        return next(iter(self.devices))

    def send(self, *orders: Order) -> None:
        if self.transport is not None:
            for order in orders:
                self.transport.send(encode(order))

    def kill(self) -> None:
        if self.transport is not None:
            self.transport.kill()

    # -- its tests ---------------------------------------------------------------------------------

    def become_ready(self) -> None:
        if self.stage is Stage.STARTING:
            self.stage = Stage.IDLE if self.loss is None else Stage.LOST
        self.since = time.monotonic()

    def give(self, tests: Sequence[Case], *, last: bool) -> None:
        """Hand over tests to run after those in the queue; with `last`, nothing will follow."""
        if not self.queue:
            self.since = time.monotonic()
        self.queue.extend(tests)
        self.stage = Stage.RUNNING
        orders = tuple(
            TestOrder(
                nodeid=test.nodeid,
                occurrence=test.occurrence,
                outside=tuple(test.outside),
                attempt=test.attempt,
            )
            for test in tests
        )
        self.send(RunTests(tests=orders, last=last))

    def start_test(self) -> None:
        """Note that the test at the head of the queue runs."""
        self.running = self.unpublished = self.queue[0]
        self.since, self.phase = time.monotonic(), "setup"

    def end_test(self) -> Case:
        """Return the test at the head of the queue, which has ended."""
        test = self.queue.popleft()
        self.running = self.unpublished = None
        self.since = time.monotonic()
        if self.stage is Stage.RUNNING and not self.queue:
            self.stage = Stage.IDLE
        return test

    def drop_tests(self) -> None:
        """Forget the tests: they will have no outcome here."""
        self.queue.clear()
        self.running = self.unpublished = None

    # -- its end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Ask the process to end: nothing is left for it."""
        self.stage = Stage.FINISHING
        self.send(FinishSession())

    def cancel(self) -> None:
        """End a process that is still starting and for which there is nothing to do.

        One whose reservation is still being made cannot be ended yet.
        """
        if self.stage is Stage.STARTING and self.transport is not None:
            self.stage, self.result = Stage.FINISHING, Done(exitstatus=None)
            self.transport.kill()

    def stop(self) -> None:
        """Ask the process to end because the session ends; its running test is interrupted."""
        self.stopped_at = time.monotonic()
        if self.stage not in (Stage.TIMED_OUT, Stage.LOST):
            self.stage = Stage.STOPPING
        self.send(StopRunning())
        if self.transport is not None and self.running is not None:
            self.transport.signal(signal.SIGINT)
        self.send(FinishSession())

    def lose(self, message: str) -> None:
        """End a process whose reservation is lost or that does not start."""
        self.loss = message
        if self.stage in (Stage.IDLE, Stage.RUNNING):
            self.stage = Stage.LOST
        self.kill()

    def time_out(self, seconds: float) -> None:
        """End a process whose test has outlived its limit; its stacks are written first."""
        self.stage, self.timed_out_s = Stage.TIMED_OUT, seconds
        self.running = self.running or self.queue[0]
        threading.Thread(target=self._kill_with_stacks, daemon=True).start()

    def _kill_with_stacks(self) -> None:
        if self.transport is not None:
            self.transport.stacks()
            time.sleep(STACKS_S)
            self.transport.kill()

    def machine_lost(self, ending: Exit) -> bool:
        """True when a machine is the reason of the end, and no test can be."""
        return ending.status is None or self.loss is not None

    def victim(self, ending: Exit) -> Case | None:
        """Return the test that ran, or was to run next, when the process ended."""
        if self.running is None and self.queue and not self.machine_lost(ending):
            return self.queue[0]
        return self.running

    def has_broken_end(self, ending: Exit) -> bool:
        """True when the process died by itself after its tests: in a teardown, or a hook."""
        asked = self.stopped_at is not None or ending.ordered
        return self.result is None and not asked and not self.machine_lost(ending)

    def death(self, ending: Exit) -> Death:
        """Return the meaning of the end of the process."""
        victim, stopped = self.victim(ending), self.stopped_at is not None
        match self.stage:
            case Stage.STARTING:
                return Death.NOT_STARTED
            case Stage.TIMED_OUT if victim is not None:
                return Death.TIMEOUT
            case _ if stopped:
                return Death.ENDED
            case _ if self.machine_lost(ending):
                return Death.MACHINE_LOST
            case _:
                return Death.CRASH if victim is not None else Death.ENDED
