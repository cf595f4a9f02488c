"""How silence is measured: by the clock of who waits, while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_gpu_cluster import liveness
from pytest_gpu_cluster.contract.errors import StoreError
from pytest_gpu_cluster.contract.record import SessionRecord
from pytest_gpu_cluster.contract.silence import STEP_S, HeartbeatMonitor, Stopwatch
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.waits import Waits
from pytest_gpu_cluster.liveness import Heartbeat


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stopwatch_counts_while_its_condition_holds() -> None:
    """It starts anew with each time that the condition did not hold."""
    clock = Clock()
    watch = Stopwatch(clock)
    seconds = []
    for clock.now, holds in ((1, True), (3, True), (4, False), (6, True)):
        seconds.append(watch.look(holds))

    assert seconds == [1, 3, 0, 2]


def test_time_in_which_the_judge_itself_was_stopped_is_nobodys_silence() -> None:
    """Where a machine sleeps, keeper and client stop together: the first to wake must not judge."""
    clock = Clock()
    client = HeartbeatMonitor(clock)
    client.poll(lambda: b"1")

    clock.now = 3600.0
    client.poll(lambda: b"1")
    assert client.silent_s == STEP_S
    clock.now += 2
    assert client.poll(lambda: b"1") == STEP_S + 2
    clock.now += 2
    assert client.poll(lambda: b"2") == client.silent_s == 0


def test_without_the_store_nobody_is_heard() -> None:
    """Else a session whose client and store are both gone would run to its deadline."""
    clock = Clock()
    client = HeartbeatMonitor(clock)
    client.poll(lambda: b"1")

    def away() -> bytes:
        raise StoreError("away", remedy="wait")

    for clock.now in (4.0, 8.0):
        with pytest.raises(StoreError):
            client.poll(away)

    assert client.silent_s == 8
    clock.now = 9.0
    assert client.poll(lambda: b"2") == 0


def test_a_store_that_takes_no_beat_is_a_failure_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk can still be read, so that the client would wait for results for ever."""
    monkeypatch.setattr(liveness, "WAITS", Waits(store_patience_s=0.0))
    store = Store.open("store", base=tmp_path)
    beats = Heartbeat(SessionRecord(store, "s1"))
    beats.beat()
    beats.raise_if_refused()
    blocked = tmp_path / "store/sessions/s1/control"
    (blocked / "heartbeat").unlink()
    blocked.rmdir()
    blocked.write_text("a file in the place of a directory")

    beats.beat()

    with pytest.raises(StoreError, match=f"the store has taken nothing .*{store.url}") as raised:
        beats.raise_if_refused()
    assert raised.value.remedy == "move it away, or choose another store"
    blocked.unlink()
    beats.beat()
    beats.raise_if_refused()
