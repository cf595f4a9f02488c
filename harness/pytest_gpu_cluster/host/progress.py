"""What the terminal shows while there are no results yet, and the session's first and last line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PREFIX = "gpu-cluster: "


class Progress:
    """Writes lines that all begin with `gpu-cluster: `; `write` gets each without its newline."""

    def __init__(self, write: Callable[[str], None], *, quiet: bool) -> None:
        self._write, self._quiet = write, quiet
        self.simulated = False
        self.results = False  # the first has been shown: what follows is pytest's own output

    def line(self, text: str) -> None:
        self._write(PREFIX + text)

    def show(self, event: Any) -> None:
        """One line for a phase, a node, and what went wrong with machines; nothing for results."""
        if event.kind == "node":
            self.simulated = self.simulated or event.data["simulated"]
        if self._quiet:
            return
        match event.kind:
            case "test_started" | "test_finished":
                self.results = True
            case "phase" | "node" if self.results:
                pass
            case "phase":
                self.line(
                    f"{event.data['name']:12} {event.data['detail']}  {event.data['seconds']:.2f} s"
                )
            case "node":
                self.node(event.data)
            case "retry":
                self.line(
                    f"retry        {event.data['nodeid']} (attempt {event.data['attempt'] + 1}): {event.data['message']}"
                )
            case "node_lost":
                self.line(f"node lost    {event.data['message']}")
            case "worker_lost" if event.data.get("failure_class") == "infrastructure":
                self.line(f"worker lost  {event.data['worker']}: {event.data['message']}")

    def node(self, data: dict[str, Any]) -> None:
        names = [device["name"] for device in data["gpus"]]
        counted = (
            ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"
        )
        driver = f", driver {data['driver']}" if data.get("driver") else ""
        self.line(f"{'node':12} {data['node']} on {data['host']}: {counted}{driver}")
