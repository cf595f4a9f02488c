"""Takes reports to the host in a thread of its own: a run never waits for it, and its end waits for a bounded time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from harness.publish import Publisher, Surface
from harness.publish.http import PublishError, Sender, drive

WITHIN_S = 60.0  # for all that is told at the end


class Courier:
    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._sender = Sender(publisher.doors)
        self._changed = threading.Condition()
        self._waiting: deque[Sequence[Surface]] = deque()
        self._busy = False
        self._current = ""
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

    def deliver(self, surfaces: Sequence[Surface], *, within_s: float = WITHIN_S) -> tuple[list[str], list[str]]:
        """Tell this now. Returns the surfaces that were told, and what went wrong with the others, a text each with its remedy."""
        until = time.monotonic() + within_s
        self._sender.hurry.set()  # what is being told is out of date
        with self._changed:
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._busy, within_s / 2)
            self._sender.hurry.clear()
            self._sender.until = until
            self._waiting.append(surfaces)
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._busy and not self._waiting, until - time.monotonic())
            told, troubles = list(self._told), list(self._troubles)
        if not done:
            troubles.append(f"{self._publisher.name}: the {self._current} was given up after {within_s:.0f} s; the verdict stands")
        return told, troubles

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                surfaces, self._busy, self._told, self._troubles = self._waiting.popleft(), True, [], []
            for name, exchange in surfaces:
                self._current = name
                self._sender.begin()
                try:
                    drive(exchange, self._sender)
                    self._told.append(name)
                except PublishError as problem:
                    remedy = self._publisher.remedy(name, problem)
                    self._troubles.append(f"{self._publisher.name}: the {name} was not taken: {problem}\n  remedy: {remedy}")
                except Exception as problem:  # a host that answers nonsense must not take the run with it
                    self._troubles.append(f"{self._publisher.name}: the {name} failed: {type(problem).__name__}: {problem}")
            with self._changed:
                self._busy = False
                self._changed.notify_all()
