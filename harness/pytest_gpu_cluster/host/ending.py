"""The end of a session on this machine, as one value.

It is made of what pytest says, of what failed beside the tests, and of who stopped it.
"""

from __future__ import annotations

from dataclasses import replace

from pytest_gpu_cluster.contract.errors import HarnessError
from pytest_gpu_cluster.contract.events import SessionFinished
from pytest_gpu_cluster.contract.failures import FailureClass, StopReason
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.record import Ending

RESULTS = (0, 1, 5)  # pytest's exit codes for results alone: passed, failed, none
GREEN = (0, 5)
RUN_AGAIN = "run again, with this process and its machine awake and the store in reach"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What failed beside the tests."""

    failure_class: FailureClass
    message: str
    remedy: str = ""

    @classmethod
    def of(cls, problem: HarnessError) -> Failure:
        return cls(failure_class=problem.failure_class, message=problem.what, remedy=problem.remedy)

    @classmethod
    def of_event(cls, event: SessionFinished) -> Failure | None:
        """Return the failure that the cluster tells; None where the tests decide."""
        if event.failure_class is None:
            return None
        remedy = RUN_AGAIN if event.stop is StopReason.CLIENT_LOST else ""
        return cls(failure_class=event.failure_class, message=event.message, remedy=remedy)

    @property
    def decides(self) -> bool:
        """True for a failure that has an exit code of its own: a crash is the tests'."""
        return self.failure_class.not_of_tests or self.failure_class is FailureClass.REQUEST


def end_for_silence(event: SessionFinished) -> SessionFinished:
    """Return the end as a failure where others have ended the session, for its client was silent.

    Its client is this one, which is back: tests without a result are no decision of its own.
    """
    if event.stop is not StopReason.CLIENT_LOST or event.failure_class is not None:
        return event
    return replace(event, failure_class=FailureClass.INFRASTRUCTURE)


def stop_message(ended: SessionFinished | None) -> str:
    """Return why the tests stopped early, where the cluster knows; "" where they did not."""
    if ended is None or ended.stop in (None, StopReason.NOTHING_TO_RUN):
        return ""
    return ended.message


def decide(
    pytest_status: int,
    *,
    failure: Failure | None,
    teardown: Failure | None,
    failed_tests: bool,
    interrupted: bool,
    message: str = "",
) -> Ending:
    """Return the ending of a session. `message`: why tests that decide stopped early.

    pytest's own exit code stands, unless what failed was not a test; a failed test wins over
    machines, and results over a teardown that failed.
    """
    exit_code = pytest_status
    if failure is not None and failure.decides and pytest_status in RESULTS and not failed_tests:
        exit_code = failure.failure_class.exit_code
    elif teardown is not None and pytest_status in GREEN:
        exit_code = teardown.failure_class.exit_code
    cause = failure or teardown
    return Ending(
        exit_code=exit_code,
        failure_class=cause.failure_class if cause is not None else None,
        message=cause.message if cause is not None else message,
        remedy=cause.remedy if cause is not None else "",
        cancelled=interrupted,
    )
