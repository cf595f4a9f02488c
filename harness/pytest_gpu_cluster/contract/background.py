"""Calls in threads of their own: a request to a distant store is nearly all waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A call that has begun; `result` waits for it. Nobody waits for one that is not asked."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._answers: list[T] = []
        self._failures: list[BaseException] = []
        self._ended = 0.0  # monotonic
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._answers.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._failures.append(error)
        self._ended = time.monotonic()

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Ctrl-C ends the wait."""
        self._thread.join()
        if self._failures:
            raise self._failures[0]
        return self._answers[0]

    @property
    def age_s(self) -> float:
        """Seconds since its end; 0 while it goes on."""
        return time.monotonic() - self._ended if self._ended else 0.0


def together(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Return the results of all calls, made at the same time. Raises what the first one raised."""
    return [each.result() for each in [Background(call) for call in calls]]
