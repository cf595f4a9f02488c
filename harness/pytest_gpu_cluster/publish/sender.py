"""Sends reports from a thread: a run never waits for the host, its end for a bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import field
from typing import NamedTuple

from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.publish import Publisher, Target
from pytest_gpu_cluster.publish.exchange import PublishError, drive
from pytest_gpu_cluster.publish.http import Transport

WITHIN_S = 60.0  # for all targets of the final report


class Delivery(NamedTuple):
    """The result of a report: names of updated targets, and a text with remedy for each other."""

    updated: list[str]
    troubles: list[str]


@dataclass(kw_only=True, eq=False)
class _Job:
    """A report on its way to the host. The thread writes it; others read it under the lock."""

    targets: Sequence[Target]
    pending: list[str]  # names of targets that have not ended
    updated: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    finished: bool = False


class BackgroundSender:
    """Keeps one report in the queue: a newer one replaces it, and cuts short one on its way."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._transport = Transport(publisher.endpoints)
        self._changed = threading.Condition()
        self._next: _Job | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def submit(self, targets: Sequence[Target]) -> None:
        """Queue a report in the place of one that waits already. Returns at once."""
        with self._changed:
            self._enqueue(targets)

    def deliver(self, targets: Sequence[Target], *, within_s: float = WITHIN_S) -> Delivery:
        """Send a report now and wait for its end, at most `within_s` seconds."""
        deadline = time.monotonic() + within_s
        with self._changed:
            self._transport.deadline = deadline
            self._transport.stop_retries.set()
            job = self._enqueue(targets)
            self._changed.wait_for(lambda: job.finished, deadline - time.monotonic())
            updated, troubles = list(job.updated), list(job.troubles)
            abandoned = [] if job.finished else list(job.pending)
        for name in abandoned:
            message = f"{self._publisher.name}: the {name} was given up after {within_s:.0f} s"
            troubles.append(self._trouble(message, name, PublishError(message)))
        return Delivery(updated, troubles)

    def _enqueue(self, targets: Sequence[Target]) -> _Job:
        job = _Job(targets=targets, pending=[target.name for target in targets])
        self._next = job
        self._changed.notify_all()
        return job

    def _run(self) -> None:
        while True:
            job = self._take()
            for target in job.targets:
                if self._next is not None:  # the rest of this report is out of date
                    break
                self._transport.begin(share=1 / len(job.pending))
                self._update(target, job)
            with self._changed:
                job.finished = True
                self._changed.notify_all()

    def _take(self) -> _Job:
        """Wait for a report and take it from the queue."""
        with self._changed:
            while (job := self._next) is None:
                self._changed.wait()
            self._next = None
            self._transport.stop_retries.clear()
            return job

    def _update(self, target: Target, job: _Job) -> None:
        place = f"{self._publisher.name}: the {target.name}"
        try:
            drive(target.exchange, self._transport)
            job.updated.append(target.name)
        except PublishError as problem:
            message = f"{place} was not taken: {problem}"
            job.troubles.append(self._trouble(message, target.name, problem))
        except Exception as problem:  # noqa: BLE001
            # A host that answers nonsense must not end the thread.
            message = f"{place} failed: {type(problem).__name__}: {problem}"
            job.troubles.append(self._trouble(message, target.name, PublishError(message)))
        job.pending.remove(target.name)

    def _trouble(self, message: str, target: str, problem: PublishError) -> str:
        return f"{message}\n  remedy: {self._publisher.remedy(target, problem)}"
