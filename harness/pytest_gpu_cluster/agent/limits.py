"""Time limits and the order to stop: checked in the agent, outside the processes that may hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.agent.worker import Stage, Worker
from pytest_gpu_cluster.contract.failures import StopReason

STOP_GRACE_S = 5.0  # between asking a running test to stop and killing it
START_LIMIT_S = 300.0  # for a worker to get from fork to its first message
ORDERS = {
    StopReason.CLIENT_DONE: "the client needs no more results",
    StopReason.CANCELLED: "interrupted by the user",
    StopReason.CLIENT_LOST: "the client was lost",
}

Orders: TypeAlias = Callable[[], StopReason | None]  # the order to stop, once there is one


class TimeLimits:
    """Checks the limits of a session, its tests and the starts of its processes."""

    def __init__(self, state: SessionState, orders: Orders) -> None:
        self._state, self._orders = state, orders
        self._began = time.monotonic()

    def check(self) -> None:
        """Kill processes that are overdue; stop the session at its deadline, or by order."""
        now, state = time.monotonic(), self._state
        for worker in state.workers:
            if worker.transport is not None:  # else its reservation is still being made
                self._check_worker(worker, now)
        max_s = state.limits.max_s
        if state.stop is None and now - self._began > max_s:
            text = f"the session's limit of {max_s / 60:g} minutes was reached"
            state.end(StopReason.LIMIT, text)
        if (reason := self._orders()) is not None:
            state.end(reason, ORDERS.get(reason, f"stopped by order: {reason}"))

    def _check_worker(self, worker: Worker, now: float) -> None:
        elapsed_s = now - worker.since
        if worker.stage is Stage.STARTING and elapsed_s > START_LIMIT_S:
            worker.lose(f"it was not ready after {START_LIMIT_S:.0f} s")
        elif worker.stopped_at is not None and now - worker.stopped_at > STOP_GRACE_S:
            worker.kill()
        elif (
            worker.stage in (Stage.RUNNING, Stage.STOPPING)
            and worker.queue
            and elapsed_s > self._state.limits.test_timeout_s
        ):
            worker.time_out(elapsed_s)
