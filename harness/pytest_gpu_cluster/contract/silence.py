"""How long something lasts in the eyes of a process that may itself be stopped meanwhile.

No clock crosses machines: whoever waits for another judges it by a clock of its own. Where the one
that waits did not run (SIGSTOP, a frozen container, a laptop's lid), the other may not have run
either, so that time is nobody's silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_gpu_cluster.contract.errors import StoreError

# The most that counts between two looks, which are 8 s apart at most where the store answers.
STEP_S = 10.0


class Stopwatch:
    """Seconds for which a condition has held, as far as this process was there to see it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self.seconds = 0.0

    def look(self, holds: bool) -> float:
        """Note whether the condition holds now; return for how many seconds it has by now."""
        now = self._clock()
        self.seconds = self.seconds + min(now - self._looked, STEP_S) if holds else 0.0
        self._looked = now
        return self.seconds


class HeartbeatMonitor:
    """Judges a heartbeat of another process, whose value has to change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._value: bytes | None = None
        self._same = Stopwatch(clock)

    def poll(self, read: Callable[[], bytes | None]) -> float:
        """Read the value as it is now; return the seconds of silence until now.

        Raises StoreError; without the store nobody is heard, so that counts as silence too.
        """
        try:
            value = read()
        except StoreError:
            self._same.look(True)
            raise
        same, self._value = value == self._value, value
        return self._same.look(same)

    @property
    def silent_s(self) -> float:
        """Seconds without a change, up to the last look."""
        return self._same.seconds
