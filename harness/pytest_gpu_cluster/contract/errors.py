"""Everything that can go wrong, each with a remedy and an exit code.

HarnessError                10
├── RequestError             4   what was asked cannot be done; nothing was spent
├── InfrastructureError     10   not your tests: Ray, a node, the agent, or the store failed
│   └── StoreError          10   the object store refused, vanished or lied
│       └── UnreadableRecordError   a record is not what this version writes
├── EnvironmentBuildError   11   the environment could not be built, or is not what was asked for
├── CapacityError           12   no machine could be had
├── LimitError              13   the session's deadline was reached
└── TeardownError           14   results stand, but something may still be running

pytest's own exit codes 0 to 5 keep their meaning; 10 to 19 always mean "not your tests".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pytest_gpu_cluster.contract.failures import FailureClass


class HarnessError(Exception):
    """A failure with a remedy: a command or an edit the reader can make now."""

    failure_class: ClassVar[FailureClass] = FailureClass.INFRASTRUCTURE

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}\n  remedy: {self.remedy}"

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this error."""
        return self.failure_class.exit_code


class RequestError(HarnessError):
    """What was asked cannot be done; nothing was spent."""

    failure_class = FailureClass.REQUEST


class InfrastructureError(HarnessError):
    """Ray, a node, the agent or the store failed; not the tests."""


class StoreError(InfrastructureError):
    """The object store refused, vanished or returned something that is not what was written."""


class UnreadableRecordError(StoreError):
    """A record in the store is not what this version writes: another one did, or somebody else."""


class EnvironmentBuildError(HarnessError):
    """The environment of the nodes could not be built, or is not what was asked for."""

    failure_class = FailureClass.ENVIRONMENT


class CapacityError(HarnessError):
    """No machine could be had; `what` lists every refusal."""

    failure_class = FailureClass.CAPACITY


class LimitError(HarnessError):
    """The session's deadline was reached."""

    failure_class = FailureClass.LIMIT


class TeardownError(HarnessError):
    """Results stand, but something of the cluster may still be running."""

    failure_class = FailureClass.TEARDOWN


_ERRORS: Mapping[FailureClass, type[HarnessError]] = {
    kind.failure_class: kind
    for kind in (RequestError, EnvironmentBuildError, CapacityError, LimitError, TeardownError)
}


def error_of(failure_class: FailureClass, what: str, *, remedy: str) -> HarnessError:
    """Return the error whose class this is; an InfrastructureError for one of the tests."""
    return _ERRORS.get(failure_class, InfrastructureError)(what, remedy=remedy)
