"""What can go wrong, each with a remedy and an exit code.

HarnessError                 1
├── RequestError             4   what was asked cannot be done; nothing was spent
├── InfrastructureError     10   not your tests: Ray, a node, the agent, or the store failed
│   └── StoreError          10   the object store refused, vanished or lied
├── EnvironmentBuildError   11   the environment could not be built, or is not what was asked for
├── CapacityError           12   nobody would rent us this machine
├── LimitError              13   the session's deadline was reached
└── TeardownError           14   results stand, but something may still be running

pytest's own exit codes 0 to 5 keep their meaning; 10 to 19 always mean "not your tests".
"""


class HarnessError(Exception):
    """A failure with a remedy: a command or an edit the reader can make now."""

    exit_code = 1
    failure_class = "infrastructure"  # what it is called in events, reports and JUnit

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}\n  remedy: {self.remedy}"


class RequestError(HarnessError):
    """What was asked cannot be done; nothing was spent."""

    exit_code = 4
    failure_class = "request"


class InfrastructureError(HarnessError):
    """Not the tests: Ray, a node, the agent or the store failed."""

    exit_code = 10


class StoreError(InfrastructureError):
    """The object store refused, vanished or returned something that is not what was written."""


class EnvironmentBuildError(HarnessError):
    """The environment of the nodes could not be built, or is not what was asked for."""

    exit_code = 11
    failure_class = "environment"


class CapacityError(HarnessError):
    """Nobody would rent us this machine; `what` lists every refusal."""

    exit_code = 12
    failure_class = "capacity"


class LimitError(HarnessError):
    """The session's deadline was reached."""

    exit_code = 13
    failure_class = "limit"


class TeardownError(HarnessError):
    """Results stand, but something of the cluster may still be running."""

    exit_code = 14
    failure_class = "teardown"


_CLASSES = (
    RequestError,
    InfrastructureError,
    EnvironmentBuildError,
    CapacityError,
    LimitError,
    TeardownError,
)
EXIT_CODES = {each.failure_class: each.exit_code for each in _CLASSES}
