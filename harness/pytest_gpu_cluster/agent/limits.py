"""Time limits and the order to stop: checked in the agent, outside the processes that may hang."""

from __future__ import annotations

import contextlib
import time

from pytest_gpu_cluster.agent.state import SessionState
from pytest_gpu_cluster.agent.worker import Stage, Worker
from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.failures import StopReason

STOP_GRACE_S = 5.0  # between asking a running test to stop and killing it
START_LIMIT_S = 300.0  # for a worker to get from fork to its first message
CONTROL_LOCAL_S, CONTROL_REMOTE_S = 0.25, 2.0  # between two looks for the order to stop
ORDERS = {
    StopReason.CLIENT_DONE: "the client needs no more results",
    StopReason.CANCELLED: "interrupted by the user",
    StopReason.CLIENT_LOST: "the client was lost",
}


class TimeLimits:
    """Checks the limits of a session, its tests and the starts of its processes."""

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._began = time.monotonic()
        self._control_read = 0.0

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
        local = state.record.store.is_local
        if now - self._control_read > (CONTROL_LOCAL_S if local else CONTROL_REMOTE_S):
            self._control_read = now
            with contextlib.suppress(HarnessError):  # the store is away: the next look may succeed
                if (reason := state.record.stop_order()) is not None:
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
