"""Show in the terminal what happens while there are no results yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_gpu_cluster.contract.events import (
    Event,
    NodeLost,
    NodeReady,
    Notice,
    PhaseFinished,
    Retry,
    TestFinished,
    TestStarted,
    WorkerLost,
)
from pytest_gpu_cluster.contract.failures import FailureClass
from pytest_gpu_cluster.report.sinks import Current, Sink, SinkContext


class Progress(Sink):
    """Writes a line for a phase, a node, or a failure of a machine; none for a result.

    With -q only for failures of machines, with -qq none.
    """

    uses_report = False

    def __init__(self, write: Callable[[str], None], *, quiet: bool) -> None:
        self._write, self._quiet = write, quiet
        self._has_results = False  # phases and nodes would only interrupt pytest's own output

    @classmethod
    def create(cls, context: SinkContext, current: Current) -> Progress | None:
        if not context.live or context.verbosity < -1:
            return None
        return cls(context.write, quiet=context.verbosity < 0)

    def event(self, event: Event) -> None:
        match event:
            case TestStarted() | TestFinished():
                self._has_results = True
            case PhaseFinished() if not (self._quiet or self._has_results):
                seconds = f"  {event.seconds:.2f} s" if event.seconds else ""
                self._write(f"{event.name:12} {event.detail}{seconds}")
            case Notice() if not self._quiet:
                self._write(f"{event.name:12} {event.text}")
            case NodeReady() if not (self._quiet or self._has_results):
                driver = f", driver {event.driver}" if event.driver else ""
                gpus = counted(gpu.name for gpu in event.gpus)
                self._write(f"{'node':12} {event.node} on {event.host}: {gpus}{driver}")
            case Retry():
                attempt = f"attempt {event.attempt + 1}"
                self._write(f"retry        {event.nodeid} ({attempt}): {event.message}")
            case NodeLost():
                self._write(f"node lost    {event.message}")
            case WorkerLost() if event.failure_class is FailureClass.INFRASTRUCTURE:
                self._write(f"worker lost  {event.worker}: {event.message}")


def counted(gpu_names: Iterable[str]) -> str:
    """Return the number of GPUs of each name.

    >>> counted(["A10G", "A10G", "L4"]), counted([])
    ('2 x A10G, 1 x L4', 'no GPU')
    """
    numbers: dict[str, int] = {}
    for name in gpu_names:
        numbers[name] = numbers.get(name, 0) + 1
    return ", ".join(f"{number} x {name}" for name, number in numbers.items()) or "no GPU"
