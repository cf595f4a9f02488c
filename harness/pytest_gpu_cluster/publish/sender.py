"""Takes reports to the host in a thread of its own: a run never waits for it, and its end waits for a bounded time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from pytest_gpu_cluster.publish import Publisher, Surface
from pytest_gpu_cluster.publish.http import PublishError, Sender, drive

WITHIN_S = 60.0  # for all that is told at the end


class Courier:
    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._sender = Sender(publisher.doors)
        self._changed = threading.Condition()
        self._waiting: deque[Sequence[Surface]] = deque()
        self._busy = False
        self._surfaces: Sequence[Surface] = ()  # of the report that is told, or was last
        self._left: list[str] = []  # its surfaces that have not ended
        self._told: list[str] = []  # of the last report: surfaces that have it …
        self._troubles: list[str] = []  # … and what went wrong with the others
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def take(self, surfaces: Sequence[Surface]) -> None:
        """Tell this when there is time; what waits already is out of date."""
        with self._changed:
            self._waiting.clear()
            self._waiting.append(surfaces)
            self._changed.notify_all()

    def deliver(
        self, surfaces: Sequence[Surface], *, within_s: float = WITHIN_S
    ) -> tuple[list[str], list[str]]:
        """Tell this now. Returns the surfaces that were told, and what went wrong with the others, a text each with its remedy."""
        until = time.monotonic() + within_s
        with self._changed:
            self._waiting.clear()
            self._waiting.append(surfaces)
            self._sender.until = until
            self._sender.hurry.set()  # what is being told is out of date
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: not self._busy and not self._waiting, until - time.monotonic()
            )
            ours = (
                self._surfaces is surfaces
            )  # and not an older report, that the host has not done with
            told, troubles = (list(self._told), list(self._troubles)) if ours else ([], [])
            left = list(self._left) if ours else [name for name, _ in surfaces]
        for name in [] if done else left:
            what = f"{self._publisher.name}: the {name} was given up after {within_s:.0f} s"
            troubles.append(f"{what}\n  remedy: {self._publisher.remedy(name, PublishError(what))}")
        return told, troubles

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self._surfaces, self._busy, self._told, self._troubles = (
                    self._waiting.popleft(),
                    True,
                    [],
                    [],
                )
                self._left = [name for name, _ in self._surfaces]
                self._sender.hurry.clear()
            for name, exchange in self._surfaces:
                if self._waiting:  # something newer: what is left of this is out of date
                    break
                self._sender.begin(share=1 / len(self._left))
                try:
                    drive(exchange, self._sender)
                    self._told.append(name)
                except PublishError as problem:
                    remedy = self._publisher.remedy(name, problem)
                    self._troubles.append(
                        f"{self._publisher.name}: the {name} was not taken: {problem}\n  remedy: {remedy}"
                    )
                except (
                    Exception
                ) as problem:  # a host that answers nonsense must not take the run with it
                    what = f"{self._publisher.name}: the {name} failed: {type(problem).__name__}: {problem}"
                    self._troubles.append(
                        f"{what}\n  remedy: {self._publisher.remedy(name, PublishError(what))}"
                    )
                self._left.remove(name)
            with self._changed:
                self._busy = False
                self._changed.notify_all()
