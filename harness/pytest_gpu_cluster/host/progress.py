"""Show in the terminal what happens while there are no results yet."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_gpu_cluster.contract.codec import Event

PREFIX = "gpu-cluster: "


class Progress:
    """Writes lines that all begin with `gpu-cluster: `; `write` gets each without its newline."""

    def __init__(self, write: Callable[[str], None], *, quiet: bool) -> None:
        self._write, self._quiet = write, quiet
        self.simulated = False
        self._has_results = False  # phases and nodes would only interrupt pytest's own output

    def line(self, text: str) -> None:
        self._write(PREFIX + text)

    def show(self, event: Event) -> None:
        """Write a line for a phase, a node, or a failure of a machine; none for a result."""
        if event.kind == "node":
            self.simulated = self.simulated or event["simulated"]
        if self._quiet:
            return
        match event.kind:
            case "test_started" | "test_finished":
                self._has_results = True
            case "phase" | "node" if self._has_results:
                pass
            case "phase":
                self.line(f"{event['name']:12} {event['detail']}  {event['seconds']:.2f} s")
            case "node":
                names = [device["name"] for device in event["gpus"]]
                driver = f", driver {event['driver']}" if event.get("driver") else ""
                self.line(
                    f"{'node':12} {event['node']} on {event['host']}: {counted(names)}{driver}"
                )
            case "retry":
                attempt = f"attempt {event['attempt'] + 1}"
                self.line(f"retry        {event['nodeid']} ({attempt}): {event['message']}")
            case "node_lost":
                self.line(f"node lost    {event['message']}")
            case "worker_lost" if event.get("failure_class") == "infrastructure":
                self.line(f"worker lost  {event['worker']}: {event['message']}")


def counted(gpu_names: Iterable[str]) -> str:
    """Return the number of GPUs of each name.

    >>> counted(["A10G", "A10G", "L4"]), counted([])
    ('2 x A10G, 1 x L4', 'no GPU')
    """
    numbers: dict[str, int] = {}
    for name in gpu_names:
        numbers[name] = numbers.get(name, 0) + 1
    return ", ".join(f"{number} x {name}" for name, number in numbers.items()) or "no GPU"
