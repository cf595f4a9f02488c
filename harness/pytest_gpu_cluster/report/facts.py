"""What every sink and the local pytest want to know of a session, whatever its results."""

from __future__ import annotations

from pytest_gpu_cluster.contract.events import Event, NodeReady, SessionFinished


class SessionFacts:
    """The machines of a session, and its end as the cluster tells it."""

    def __init__(self) -> None:
        self.gpus: list[str] = []  # names, one for each device
        self.simulated = False
        self.cluster = ""  # id
        self.ended: SessionFinished | None = None  # the agent's own, where there are several

    def add(self, event: Event) -> None:
        """Take in one event; most say nothing of these."""
        match event:
            case NodeReady():
                self.gpus += [device.name for device in event.gpus]
                self.simulated = self.simulated or event.simulated
                self.cluster = event.cluster or self.cluster
            case SessionFinished() if self.ended is None or event.writer == "agent":
                self.ended = event
